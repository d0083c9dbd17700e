"""Four ranks start once for all tests here that are not slow: a start costs more than most of what they then do."""

from typing import Any

import pytest

from llm.testing import run_ranks


def everything(rank: int, size: int) -> dict[str, Any]:
    from tests.parallel import test_float32, test_isolation, test_mixers, test_ring

    return {
        "mixers": test_mixers.all_of_them(rank, size, test_mixers.FEW),
        "isolation": test_isolation.leaks(rank, size, test_isolation.KINDS, [test_isolation.BEHIND]),
        "faults": test_isolation.leaks_with_faults(rank, size),
        "float32": test_float32.split(rank, size, test_float32.KINDS),
        "ring": test_ring.differences(rank, size),
        "largest in a ring": test_ring.largest(rank, size),
    }


@pytest.fixture(scope="session")
def four_ranks() -> list[dict[str, Any]]:
    """By rank: what the tests' functions found."""
    return run_ranks(everything, 4, 4, timeout=900)
