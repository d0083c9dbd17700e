"""Fast weights by a Triton kernel of our own; definition: `naive.py`, algebra: `chunk.py`, kernel: `kernel_triton.py`.

No kept library has this recurrence. fla's delta rules (gated, with momentum) take each token's error at the weights before that
token, which is a chunk of one token here; its TTT normalises inside the loss, and has no momentum; its Titans is another model.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm.docs import Stretch
from llm.ops import kernels
from llm.ops.kernels import HALF, Facts, Route, extent

if TYPE_CHECKING:
    from llm.ops.memory.chunk import Mixing, Written
    from llm.ops.memory.layout import Layout
    from llm.ops.memory.naive import Memory, Weights

HANDED_ON = "llm.ops.memory.kernel_triton:handed_on"


def facts(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, *streams: Any, chunk: int) -> dict[str, Any]:
    initial = streams[3]
    sizes = {"K": k_BTHK.shape[-1], "V": v_BTHV.shape[-1], "C": chunk}
    return {"sizes": sizes, "extent": extent(q_BTHK, k_BTHK, v_BTHV), "special": {"matrices": len(initial)}}


def context_facts(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, *_: Any, chunk: int, **settings: Any) -> dict[str, Any]:
    return {"sizes": {"K": k_BTHK.shape[-1], "V": v_BTHV.shape[-1], "C": chunk}}


def memory(q, k, v, log_keep, log_momentum, step, initial, state, *, chunk: int, at: Stretch) -> "tuple[Tensor, Memory]":
    # imported here, as below: these forms turn by `rotary`, which itself asks the routes that this module is a part of
    from llm.ops.memory import chunk as in_chunks

    streams = (q, k, v, log_keep, log_momentum, step)
    return in_chunks.memory(*streams, initial, state, at.phase_BT, chunk=chunk, chunks=at.most_chunks(chunk), handed_on=handed_on)


def handed_on(
    k: Tensor, v: Tensor, step: Tensor, mixing: "Mixing", initial: "Weights", state: "Memory", placed: "Layout | None"
) -> "tuple[Memory, Memory, list[Written]]":
    """`chunk.in_turn` of a memory of one matrix."""
    from llm.ops.memory.chunk import Written
    from llm.ops.memory.naive import Memory

    pairs, *ends = mixing.ends
    if placed is None:
        opening = torch.ones(k.shape[:2], dtype=torch.int32, device=k.device)
        opening[0] = 2
    else:
        opening = placed.opens_NB.int() + placed.begins_NB.int()
    gates = (step, *pairs.unbind(-1), *(x[..., 0, 0] for x in ends))
    matrices = (*initial, *(part[0] for part in state))
    given = (x.contiguous() for x in (k, v, *gates, opening, *matrices))
    before_weights, before_momentum, error, *last = kernels.entry(HANDED_ON)(*given)
    written = Written(k, (-2 * step)[..., None] * error)
    return Memory(*((x,) for x in last)), Memory((), (before_weights,), (before_momentum,)), [written]


def _one_matrix(facts: Facts) -> str | None:
    matrices = facts.special.get("matrices", 1)
    return None if matrices == 1 else f"holds a memory of one matrix, not of {matrices}: its columns would meet in the second"


ROUTES = (
    Route(
        name="triton",
        package="triton",
        entry=HANDED_ON,
        extra="",
        run=memory,
        dtypes=(*HALF, torch.float32),
        widths={"K": (16, 256, 1), "V": (16, 1024, 1), "C": (1, 256, 1)},
        more=_one_matrix,
    ),
)
