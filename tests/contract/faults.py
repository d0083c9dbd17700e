"""Bugs planted into the ops, one at a time: each is a plausible slip, and the suite must catch every one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.docs import Docs, Stretch
from llm.ops import dispatch, loops, rotary
from llm.ops.conv import chunk as conv_chunk
from llm.ops.linear import chunk as linear_chunk
from llm.ops.linear import naive as linear_naive
from llm.ops.memory import chunk as memory_chunk
from llm.ops.recurrent import cells
from llm.ops.recurrent import chunk as recurrent_chunk
from llm.ops.recurrent import loop as recurrent_loop
from llm.ops.scan import chunk as scan_chunk
from llm.ops.scan import loop as scan_loop
from llm.parallel import attention as across


def _many(family: str, op: Callable[..., Any]) -> AbstractContextManager:
    """`op` in place of the family's form for many tokens."""
    return patch.dict(dispatch.IMPLEMENTATIONS, {family: (dispatch.IMPLEMENTATIONS[family][0], op)})


def convolution_ignores_documents() -> AbstractContextManager:
    return _many("conv", lambda x, weight, bias, tail, starts: conv_chunk.conv(x, weight, bias, tail, None))


def convolution_keeps_its_tail_at_a_start() -> AbstractContextManager:
    def conv(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, starts: Tensor | None) -> Any:
        y, _ = conv_chunk.conv(x, weight, bias, tail, starts)
        return y, torch.cat([tail, x], 1)[:, x.shape[1] :]

    return _many("conv", conv)


def recurrence_ignores_documents() -> AbstractContextManager:
    return _many("linear", lambda *streams, **kw: linear_chunk.linear(*streams[:5], None, **kw))


def state_is_kept_at_a_start() -> AbstractContextManager:
    right = linear_chunk.reach_of

    def wrong(*args: Any) -> Any:
        reach = right(*args)
        return reach._replace(from_start=torch.ones_like(reach.from_start), through=torch.ones_like(reach.through))

    return patch.object(linear_chunk, "reach_of", wrong)


def state_is_kept_at_a_start_of_a_step() -> AbstractContextManager:
    step = lambda *streams, **kw: linear_naive.linear(*streams[:5], None, **kw)  # noqa: E731
    return patch.dict(dispatch.IMPLEMENTATIONS, {"linear": (step, linear_chunk.linear)})


def decay_is_off_by_one_at_chunk_borders() -> AbstractContextManager:
    right = linear_chunk._decays

    def wrong(*args: Any) -> Any:
        decay = right(*args)
        return decay._replace(to_end=torch.cat([decay.to_end[..., 1:], decay.to_end[..., -1:]], -1))

    return patch.object(linear_chunk, "_decays", wrong)


def state_is_mutated_in_place() -> AbstractContextManager:
    right = linear_chunk._handed_on

    def wrong(state: Tensor, through: Tensor, updates: Tensor) -> Any:
        incoming, final = right(state.clone(), through, updates)
        return incoming, state.copy_(final)

    return patch.object(linear_chunk, "_handed_on", wrong)


def state_is_dropped() -> AbstractContextManager:
    right = linear_chunk._handed_on
    return patch.object(linear_chunk, "_handed_on", lambda state, *rest: right(torch.zeros_like(state), *rest))


def gradient_of_the_state_is_dropped() -> AbstractContextManager:
    right = linear_chunk._handed_back
    return patch.object(linear_chunk, "_handed_back", lambda dstate, *rest: right(torch.zeros_like(dstate), *rest))


def scores_see_one_token_ahead() -> AbstractContextManager:
    right = linear_chunk.reach_of

    def wrong(*args: Any) -> Any:
        reach = right(*args)
        ahead = F.pad(torch.ones_like(reach.pairs[..., :-1, 0]).diag_embed(1), (0, 0, 0, 0))
        return reach._replace(pairs=reach.pairs + ahead[..., : reach.pairs.shape[-2], :])

    return patch.object(linear_chunk, "reach_of", wrong)


def scan_ignores_documents() -> AbstractContextManager:
    return _many("scan", lambda *streams: scan_chunk.scan(*streams[:6], None))


def scan_drops_its_state() -> AbstractContextManager:
    right = scan_chunk._states
    return patch.object(scan_chunk, "_states", lambda chunk, state: right(chunk, torch.zeros_like(state)))


def scan_decays_with_the_step_before() -> AbstractContextManager:
    right = scan_chunk._chunk

    def wrong(*args: Any) -> Any:
        chunk = right(*args)
        return chunk._replace(decay=torch.cat([chunk.decay[:1], chunk.decay[:-1]]))

    return patch.object(scan_chunk, "_chunk", wrong)


def compiled_scan_ignores_documents() -> AbstractContextManager:
    return patch.dict(loops.LOOPS, {"scan": (scan_loop.SOURCE, lambda *streams: scan_loop.scan(*streams[:6], None))})


def cell_ignores_documents() -> AbstractContextManager:
    return _many("recurrent", lambda *streams, **kw: recurrent_chunk.recurrent(*streams[:4], None, **kw))


def compiled_cell_drops_its_state() -> AbstractContextManager:
    def wrong(x: Tensor, R: Tensor, bias: Tensor, state: Any, *rest: Any, **kw: Any) -> Any:
        return recurrent_loop.recurrent(x, R, bias, tuple(map(torch.zeros_like, state)), *rest, **kw)

    return patch.dict(loops.LOOPS, {"recurrent": (recurrent_loop.SOURCE, wrong)})


def cell_forgets_the_gradient_of_its_state() -> AbstractContextManager:
    right = cells.LSTM.back

    def wrong(self: cells.LSTM, saved: Any, dstate: Any) -> Any:
        dx, dr, (dh, dc) = right(self, saved, dstate)
        return dx, dr, (dh, torch.zeros_like(dc))

    return patch.object(cells.LSTM, "back", wrong)


def memory_chunks_run_on_over_documents() -> AbstractContextManager:
    def wrong(*streams: Any, **kw: Any) -> Any:
        *rest, position = streams
        if position is not None:
            running = position[:, :1] + torch.arange(position.shape[1]) + kw["chunk"]
            position = torch.where(position == 0, 0, running)
        return memory_chunk.memory(*rest, position, **kw | {"chunks": None})

    return _many("memory", wrong)


def memory_keeps_its_momentum_at_a_start() -> AbstractContextManager:
    right = memory_chunk._restarted
    return patch.object(memory_chunk, "_restarted", lambda *args: (right(*args)[0], args[-1]))


def memory_takes_gradients_at_its_current_weights() -> AbstractContextManager:
    right = memory_chunk.in_turn

    def wrong(*args: Any) -> Any:
        *rest, state, placed = args
        return right(*rest, state._replace(start=state.weights), placed)

    return patch.object(memory_chunk, "in_turn", wrong)


def cache_of_an_ended_document_stays_valid() -> AbstractContextManager:
    right = across.cache

    def wrong(k: Tensor, v: Tensor, valid: Tensor, stretch: Stretch, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        return right(k, v, valid, Stretch(None, stretch.offset_B, stretch.first, stretch.tokens, stretch.fresh), window)

    return patch.object(across, "cache", wrong)


def attention_ignores_documents() -> AbstractContextManager:
    _, right = dispatch.IMPLEMENTATIONS["attention"]
    return _many("attention", lambda *streams, **kw: right(*streams[:4], None, **kw))


def rotary_position_is_not_restarted() -> AbstractContextManager:
    return patch.object(Docs, "position_BT", lambda self, offset_B: offset_B[:, None] + torch.arange(self.shape[1]))


def rotary_position_starts_again_with_every_batch() -> AbstractContextManager:
    right = rotary.angles
    return patch.object(rotary, "angles", lambda position, *rest: right(position - position[:, :1], *rest))


# fault -> (the mixer it is planted under, a law that must break)
FAULTS: dict[Callable[[], AbstractContextManager], tuple[str, str]] = {
    convolution_ignores_documents: ("short_conv", "nothing_before_a_start_touches_it"),
    convolution_keeps_its_tail_at_a_start: ("short_conv", "nothing_before_a_start_touches_it"),
    recurrence_ignores_documents: ("retention", "nothing_before_a_start_touches_it"),
    state_is_kept_at_a_start: ("retention", "nothing_before_a_start_touches_it"),
    state_is_kept_at_a_start_of_a_step: ("retention", "steps_are_one_pass"),
    decay_is_off_by_one_at_chunk_borders: ("retention", "splitting_changes_nothing"),
    state_is_mutated_in_place: ("retention", "nothing_passed_in_is_changed"),
    state_is_dropped: ("retention", "splitting_changes_nothing"),
    gradient_of_the_state_is_dropped: ("retention", "gradients_are_right"),
    scores_see_one_token_ahead: ("retention", "nothing_later_touches_earlier"),
    scan_ignores_documents: ("mamba", "nothing_before_a_start_touches_it"),
    scan_drops_its_state: ("mamba", "splitting_changes_nothing"),
    scan_decays_with_the_step_before: ("mamba", "steps_are_one_pass"),
    compiled_scan_ignores_documents: ("mamba", "nothing_before_a_start_touches_it"),
    cell_ignores_documents: ("slstm", "nothing_before_a_start_touches_it"),
    compiled_cell_drops_its_state: ("lstm", "splitting_changes_nothing"),
    cell_forgets_the_gradient_of_its_state: ("lstm", "gradients_are_right"),
    memory_chunks_run_on_over_documents: ("titans", "a_packed_document_is_the_document_alone"),
    memory_keeps_its_momentum_at_a_start: ("titans", "nothing_before_a_start_touches_it"),
    memory_takes_gradients_at_its_current_weights: ("titans", "splitting_changes_nothing"),
    cache_of_an_ended_document_stays_valid: ("attention", "nothing_before_a_start_touches_it"),
    attention_ignores_documents: ("attention", "nothing_before_a_start_touches_it"),
    rotary_position_is_not_restarted: ("attention", "nothing_before_a_start_touches_it"),
    rotary_position_starts_again_with_every_batch: ("attention", "splitting_changes_nothing"),
}
