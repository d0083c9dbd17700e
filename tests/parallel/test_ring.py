"""Attention in a ring is the definition on one rank, with all that it can be asked for at once; no rank holds the keys of all."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm.docs import Docs, Stretch
from llm.ops.attention import naive
from llm.ops.attention.tiles import BLOCK, Scores
from llm.parallel import Ranks
from llm.parallel.ring import ring

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(1000)]

B, T, H, G, K, V, PAST, FIXED = 2, 96, 6, 3, 4, 5, 7, 2
SCORES = (Scores(None, 0.5, None), Scores(40, 0.5, 1.3))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def inputs() -> list[torch.Tensor]:
    """q, k, v of the sequence, cached k and v, prefix k and v."""
    shapes = [(B, T, H, K), (B, T, G, K), (B, T, G, V), (B, PAST, G, K), (B, PAST, G, V), (FIXED, G, K), (FIXED, G, V)]
    return [drawn(*shape).requires_grad_() for shape in shapes]


def differences(rank: int, size: int) -> list[float]:
    """Of outputs and every gradient, for each way to score."""
    starts, valid, found = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, PAST, dtype=torch.bool), []
    # row 0 goes on with its cache as far as the second rank; in row 1 one document spans three ranks
    starts[0, [30, 90]], starts[1, [3, 20, 80]], valid[1, :4] = True, True, False
    here = slice(rank * T // size, (rank + 1) * T // size)
    for scores in SCORES:
        (q, k, v, *past, k_fixed, v_fixed), mine = inputs(), inputs()
        settings = scores._asdict() | {"prefix": (k_fixed, v_fixed)}
        want = naive.attention(q, torch.cat([past[0], k], 1), torch.cat([past[1], v], 1), valid, starts, **settings)
        whole = Stretch(Docs(starts), torch.zeros(B, dtype=torch.long), 0, T, False)
        ours = (x[:, here] for x in mine[:3])
        y = ring(*ours, (mine[3], mine[4], valid), (mine[5], mine[6]), Ranks(rank, size), whole, scores)
        weight = drawn(B, T, H, V)
        (want * weight).sum().backward()
        (y * weight[:, here]).sum().backward()
        found.append((y - want[:, here]).abs().max().item())
        for x, theirs in zip(mine, (q, k, v, *past, k_fixed, v_fixed), strict=True):
            torch.distributed.all_reduce(x.grad)
            found.append((x.grad - theirs.grad).abs().max().item())
    return found


class Largest(TorchDispatchMode):
    """Of all tensors that are made, the elements of the largest."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return made


def largest(rank: int, size: int) -> int:
    tokens, width = 512, 64
    q, k, v = (torch.randn(1, tokens, 1, width, requires_grad=True) for _ in range(3))
    past = (k[:, :0], v[:, :0], torch.ones(1, 0, dtype=torch.bool))
    whole = Stretch(None, torch.zeros(1, dtype=torch.long), 0, size * tokens, True)
    with Largest() as made:
        ring(q, k, v, past, None, Ranks(rank, size), whole, Scores(None, 0.1, None)).sum().backward()
    assert size * tokens * width > BLOCK**2 >= tokens * 2 * width, "a tile, and a rank's keys and values, are smaller than all keys"
    return made.elements


def test_ring_is_the_definition(four_ranks: list) -> None:
    for found in four_ranks:
        assert len(found["ring"]) == 2 * (1 + len(inputs()))
        assert max(found["ring"]) <= 1e-12


def test_no_rank_holds_all_keys(four_ranks: list) -> None:
    assert all(found["largest in a ring"] <= BLOCK**2 for found in four_ranks)
