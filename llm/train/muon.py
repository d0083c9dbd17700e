"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) in Moonlight's form (arXiv:2502.16982), on whole or split matrices.

    m <- momentum m + (1 - momentum) g;   u = NS5((1 - momentum) g + momentum m)
    w <- (1 - lr decay) w - 0.2 sqrt(max(rows, columns)) lr u        (Moonlight, eq. 4)

NS5 brings singular values near 1 by five steps of a quintic Newton-Schulz iteration, in the precision of the run. Under ZeRO a
matrix is split over ranks: one of those that hold a part makes the whole. Parts travel there and back in the precision in which NS5
works anyway, so the update is that of a single rank. A matrix that a rank holds whole does not travel.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from llm.train.layout import Piece, pieces

Shape = tuple[int, ...]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
# of an update under AdamW (Moonlight, section 2.2)
RMS = 0.2


def orthogonalise(matrix: Tensor) -> Tensor:
    """The matrix with its singular values near 1: `[rows, columns]`, in any precision."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@dataclass(frozen=True)
class Plan:
    """mine: what this rank holds. outgoing: of that, what each rank makes. incoming: what each rank holds of what this one makes.

    Pieces lie in the order of parameters, the same in the buffers of both sides.
    """

    shapes: tuple[Shape, ...]
    rank: int
    mine: list[Piece]
    outgoing: list[list[Piece]]
    incoming: list[list[Piece]]


@lru_cache(maxsize=4096)
def plan(shapes: tuple[Shape, ...], zero: int, rank: int, ranks: int, held: int) -> Plan:
    """For matrices of one group, of whose flat tensor each rank holds `held` values."""
    numels = [math.prod(shape) for shape in shapes]
    layout = [pieces(numels, zero, each, ranks, held) for each in range(ranks)]
    owners = owners_of(shapes, layout)
    outgoing = [[piece for piece in layout[rank] if owners[piece.parameter] == owner] for owner in range(ranks)]
    incoming = [[piece for piece in there if owners[piece.parameter] == rank] for there in layout]
    return Plan(shapes, rank, layout[rank], outgoing, incoming)


def owners_of(shapes: tuple[Shape, ...], layout: list[list[Piece]]) -> list[int]:
    """Which of its holders makes each matrix: the one with the least to do so far; those held whole are dealt first."""
    holders: list[list[int]] = [[] for _ in shapes]
    for rank, held in enumerate(layout):
        for piece in held:
            holders[piece.parameter].append(rank)
    load, owners = [0] * len(layout), [0] * len(shapes)
    for k in sorted(range(len(shapes)), key=lambda k: len(holders[k])):
        owners[k] = min(holders[k], key=lambda rank: load[rank])
        load[owners[k]] += math.prod(shapes[k]) * min(shapes[k])
    return owners


def orthogonalised(flat: Tensor, plan: Plan) -> Tensor:
    """`orthogonalise` of every matrix: this rank's parts in, its parts of the results out. All ranks call it together."""
    parts = exchange(flat, [[flat[piece.held] for piece in group] for group in plan.outgoing], plan.incoming, plan.rank)
    whole: dict[int, list[Tensor]] = {}
    for group, values in zip(plan.incoming, parts, strict=True):
        for piece, value in zip(group, values, strict=True):
            whole.setdefault(piece.parameter, []).append(value)
    made = {k: orthogonalise(torch.cat(values).view(plan.shapes[k])).flatten() for k, values in whole.items()}
    back = [[made[piece.parameter][piece.start : piece.stop] for piece in group] for group in plan.incoming]
    result = torch.zeros_like(flat)
    for group, values in zip(plan.outgoing, exchange(flat, back, plan.outgoing, plan.rank), strict=True):
        for piece, value in zip(group, values, strict=True):
            result[piece.held] = value
    return result


def exchange(like: Tensor, outgoing: list[list[Tensor]], incoming: list[list[Piece]], rank: int) -> list[list[Tensor]]:
    """Flat parts for every rank go out, those of `incoming` come in from each; what stays with its rank is not copied."""
    if len(outgoing) == 1:
        return outgoing
    lengths = [[piece.stop - piece.start for piece in group] if k != rank else [] for k, group in enumerate(incoming)]
    travelling = [values if k != rank else [] for k, values in enumerate(outgoing)]
    send = torch.cat([like[:0], *(value for values in travelling for value in values)])
    sizes = [sum(each) for each in lengths]
    receive = like.new_empty(sum(sizes))
    dist.all_to_all_single(receive, send, sizes, [sum(map(len, values)) for values in travelling])
    parts = [list(buffer.split(each)) for buffer, each in zip(receive.split(sizes), lengths, strict=True)]
    parts[rank] = outgoing[rank]
    return parts
