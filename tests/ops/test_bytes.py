"""The bytes that PyTorch's forms of single tokens' ops move are those that docs/kernels.md argues with."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.ops.cross_entropy import _of_logits
from llm.ops.norm import head_norm
from llm.ops.rotary import turned
from llm.ops.swiglu import swiglu
from tests.checkout import ROOT

# reach a few elements of their tensors
FEW = (torch.ops.aten.gather, torch.ops.aten.scatter_add_)
aten = torch.ops.aten
ALLOCATE = (aten.empty, aten.empty_like, aten.detach)


class Moved(TorchDispatchMode):
    """Bytes of all inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view and function.overloadpacket not in (*FEW, *ALLOCATE):
            self.bytes += sum(x.numel() * x.itemsize for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        return out


def stream(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta", requires_grad=True)


def moved(op: Callable[..., Tensor], *leaves: Tensor) -> list[int]:
    """Forward and backward, for each element of the first."""
    with Moved() as forward:
        y = op(*leaves)
    with Moved() as backward:
        torch.autograd.grad(y, leaves, torch.empty_like(y))
    return [int(each.bytes / leaves[0].numel()) for each in (forward, backward)]


def in_table(row: str) -> str:
    """The bytes of PyTorch's form."""
    text = (ROOT / "docs" / "kernels.md").read_text().partition("where kernels win")[2].partition("\n## ")[0]
    lines = [line.split("|") for line in text.splitlines()]
    (found,) = [cells[2] for cells in lines if len(cells) > 2 and cells[1].strip() == row]
    return found


TABLE = torch.empty(1, 512, 64, device="meta")
WEIGHT = torch.empty(16, 128, device="meta", requires_grad=True)


@pytest.mark.parametrize(
    ("row", "op", "leaves"),
    [
        ("norm of heads", lambda x, weight: head_norm(x, weight, None, 1e-6), (stream(1, 512, 16, 128), WEIGHT)),
        ("rotary", lambda x: turned(x, TABLE, TABLE), (stream(1, 512, 16, 128),)),
        ("SwiGLU", swiglu, (stream(512, 2048), stream(512, 2048))),
    ],
)
def test_bytes_of_the_table_are_counted(row, op, leaves):
    assert moved(op, *leaves) == [int(number) for number in in_table(row).split("+")]


def test_bytes_of_the_loss_are_counted():
    """Without what `logsumexp` does inside beyond one reading."""
    logits, labels = stream(64, 50304).detach(), torch.empty(64, dtype=torch.long, device="meta")
    with Moved() as count:
        _of_logits(logits, labels, ignored=-100, z_loss=0.0, cap=None, gradient=True, at=None)
    assert round(count.bytes / logits.numel()) == int(in_table("cross-entropy (no cap)").split(",")[0])
