"""Which attention layers, or heads, look at little else than the last tokens: those a window or a recurrence replaces cheaply.

LightTransfer (arXiv:2410.13846 sec. 3): a layer's lazy ratio is the share of attention, averaged over heads and the last queries,
that falls on the first tokens (sinks) and the most recent ones. The laziest layers give up their full attention. RecurFormer
(arXiv:2410.12850): a head's recency ratio is the share that falls on the most recent ones; here of a key/value head, as the mean of
the heads that share it, because the cache shrinks by whole ones only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from llm.data.tokenizer import load_tokenizer
from llm.errors import DataError
from llm.mixers.attention import Attention
from llm.model import Decoder
from llm.sequence import Seq

SINK, RECENT, QUERIES = 4, 64, 64
Place = TypeVar("Place", int, tuple[int, int])


def lazy_ratios(
    model: Decoder, tokens_BT: Tensor, sink: int = SINK, recent: int = RECENT, queries: int = QUERIES
) -> dict[int, float]:
    """Layer -> lazy ratio, for the layers with full attention. `recent` counts the query itself."""
    return {i: float(share_H.mean()) for i, share_H in _shares(model, tokens_BT, sink, recent, queries).items()}


def recency_ratios(model: Decoder, tokens_BT: Tensor, recent: int = RECENT, queries: int = QUERIES) -> dict[tuple[int, int], float]:
    """(layer, key/value head) -> recency ratio, for the layers with full attention."""
    found: dict[tuple[int, int], float] = {}
    for i, share_H in _shares(model, tokens_BT, 0, recent, queries).items():
        share_G = share_H.view(model.blocks[i].mixer.kv_heads, -1).mean(1)  # type: ignore[union-attr, arg-type]
        found |= {(i, g): float(share) for g, share in enumerate(share_G)}
    return found


@torch.no_grad()
def _shares(model: Decoder, tokens_BT: Tensor, sink: int, recent: int, queries: int) -> dict[int, Tensor]:
    """Layer -> share of attention of each head, `[H]`."""
    found: dict[int, Tensor] = {}
    hooks = []
    for i, block in enumerate(model.blocks):
        if isinstance(block.mixer, Attention) and block.mixer.config.window is None:
            hooks.append(block.mixer.register_forward_pre_hook(_measure(found, i, sink, recent, queries)))
    try:
        model(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _measure(found: dict[int, Tensor], i: int, sink: int, recent: int, queries: int) -> Callable[..., None]:
    def measure(mixer: Attention, inputs: tuple) -> None:
        p_BHQT = attention_of(mixer, inputs[0], queries)
        T, Q = p_BHQT.shape[-1], p_BHQT.shape[-2]
        t, query = torch.arange(T), torch.arange(T - Q, T)[:, None]
        near = (t < sink) | (t > query - recent)
        found[i] = (p_BHQT * near).sum(-1).mean((0, 2))

    return measure


def attention_of(mixer: Attention, x_BTD: Tensor, queries: int) -> Tensor:
    """`[B, H, Q, T]`: what the last `queries` tokens attend to."""
    seq = Seq(mixer.init_state(len(x_BTD), x_BTD.device, x_BTD.dtype), True, None, x_BTD.shape[1])
    q, k = mixer.queries_and_keys(x_BTD, seq)
    q = q[:, -queries:]
    k = k.repeat_interleave(mixer.heads // mixer.kv_heads, 2)
    scores = torch.einsum("bqhk,bthk->bhqt", q, k).float() * mixer.head_dim**-0.5
    if mixer.config.soft_cap is not None:
        scores = mixer.config.soft_cap * (scores / mixer.config.soft_cap).tanh()
    T, Q = k.shape[1], q.shape[1]
    later = torch.arange(T, device=q.device) > torch.arange(T - Q, T, device=q.device)[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def tokens_of(tokenizer: Path, text: Path, count: int = 4096) -> Tensor:
    """`[1, T]`: the first `count` tokens of a text. Raises DataError when there are too few to tell."""
    ids = load_tokenizer(tokenizer).encode(text.read_text(errors="replace"), add_special_tokens=False).ids[:count]
    if len(ids) < 4 * (SINK + RECENT):
        raise DataError(
            f"{text} has {len(ids)} tokens, too few to tell lazy layers from others; use a text of at least {4 * (SINK + RECENT)}"
        )
    return torch.tensor([ids])


def laziest(ratios: dict[Place, float], count: int) -> list[Place]:
    """The `count` layers or heads with the largest ratios, in their order."""
    return sorted(sorted(ratios, key=lambda i: -ratios[i])[:count])
