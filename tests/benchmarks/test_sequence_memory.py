"""Of a long sequence's activations nearly all is split: the peak of SP ranks is a + b / SP with little a."""

import pytest

from benchmarks.sequence_memory import LAYERS, SIZES, fitted, measured

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(600)]


def test_activations_are_split() -> None:
    for name, found in zip(LAYERS, measured(list(LAYERS), tokens=4096), strict=True):
        a, b = fitted(found)
        assert b / (a + b) >= 0.85, f"{name}: {found} bytes on {SIZES} ranks"
        # the fit is one
        assert all(abs(a + b / size - peak) < 0.05 * peak for size, peak in zip(SIZES, found, strict=True)), name
