"""Every Triton route is the definition, in outputs, states and every gradient; the table in docs/kernels.md is this run's.

`make test-kernels WRITE=1` writes it anew.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from llm.ops import kernels, routes
from tests.checkout import ROOT
from tests.kernels.cases import Case, differences
from tests.kernels.triton_cases import CASES, TOKENWISE

BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3}
CALLS = [(case, documents) for case in [*CASES, *TOKENWISE] for documents in (False, True) if case.documents or not documents]
TABLE = ROOT / "docs" / "kernels.md"
HEAD, END = "<!-- parity: written by `make test-kernels WRITE=1` -->\n", "<!-- end of parity -->\n"


@pytest.fixture(scope="module")
def lines() -> Iterator[list[str]]:
    rows = ["| call | kernel | dtype | documents | output, states | gradients | s |", "|---|---|---|---|---|---|---|"]
    yield rows
    if os.environ.get("WRITE") == "1":
        before, _, rest = TABLE.read_text().partition(HEAD)
        TABLE.write_text(before + HEAD + "\n".join(rows) + "\n" + END + rest.partition(END)[2])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", BOUNDS, ids=["fp32", "fp16"])
@pytest.mark.parametrize(("case", "documents"), CALLS, ids=[f"{case.name}{', documents' * d}" for case, d in CALLS])
def test_a_kernel_is_the_definition(case: Case, documents: bool, dtype: torch.dtype, lines: list[str]):
    found, seconds = differences(case, dtype, documents)
    (route, *_) = [r for r in routes.ROUTES[case.family] if r.name == case.route]
    numbers = [f"{error:.0e}" for name, error in found.items() if not name.startswith("d")]
    gradients = [f"{name[1:]} {error:.0e}" for name, error in found.items() if name.startswith("d")]
    package = f"{route.package} {kernels.version(route.package)}"
    cells = [case.name, package, kernels.NAMES[dtype], "yes" if documents else "no"]
    cells += [", ".join(numbers), ", ".join(gradients) or "none", f"{seconds:.1f}"]
    lines.append(f"| {' | '.join(cells)} |")
    assert max(found.values()) <= BOUNDS[dtype], found
