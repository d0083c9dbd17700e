"""A window on time that notes what mixers do in it: which earlier tokens each output is made of, and how fast they fade.

For gates and keys as they are, an op's output is linear in its values: y_t = sum_s A_ts v_s. The map A comes from the op's own
definition, run on values that are unit vectors, one per token (Ali et al., arXiv:2403.01590, do so by hand for Mamba).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.subject import Subject
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.model import Decoder
from llm.ops.attention import naive as attention
from llm.ops.linear import naive as linear
from llm.ops.scan import naive as scan
from llm.sequence import Seq
from llm.state import accumulator


@dataclass(frozen=True)
class Seen:
    """map_BHTS: A, of each head (`scan`: channel). log_decay: `[B, T, *]` of what a state keeps; None: of softmax attention."""

    map_BHTS: Tensor
    log_decay: Tensor | None


class Watched(Seq):
    """Of a fresh sequence. Ops without a map are run as ever; the others give the map's product with their values.

    seen: by the op's name. What comes out is the layer's output made from the maps, so that comparing it checks them.
    """

    def __init__(self, mixer: Mixer, x_BTD: Tensor):
        super().__init__(mixer.init_state(x_BTD.shape[0], x_BTD.device, x_BTD.dtype), True, None, x_BTD.shape[1])
        self.seen: dict[str, Seen] = {}

    def linear(self, name, q_BTGK, k_BTGK, v_BTHV, log_decay, *, scale=1.0, step_BTH=None):
        B, T, H, _ = v_BTHV.shape
        if step_BTH is not None:
            log_decay, v_BTHV = log_decay * step_BTH, v_BTHV * step_BTH[..., None]
        state = v_BTHV.new_zeros(B, H, k_BTGK.shape[-1], T)
        y_BTHS, _ = linear.linear(q_BTGK, k_BTGK, _units(v_BTHV), log_decay, state, scale=scale)
        kept = log_decay.expand(B, T, H) if log_decay.ndim < 4 else log_decay
        return self._read(name, y_BTHS, v_BTHV, kept)

    def mlstm(self, name, q_BTHK, k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH, *, scale):
        B, T, H, K = k_BTHK.shape
        exact = accumulator(v_BTHV.dtype)
        state = tuple(torch.zeros(B, H, *shape, dtype=exact, device=v_BTHV.device) for shape in ((K, T), (K,), ()))
        y_BTHS, _ = linear.mlstm(q_BTHK, k_BTHK, _units(v_BTHV), log_input_BTH, log_forget_BTH, state, scale=scale)
        return self._read(name, y_BTHS, v_BTHV, log_forget_BTH)

    def scan(self, name, u_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN):
        B, T, D = u_BTD.shape
        # a row of the batch for each token that is a unit; channels have no width of their own
        u = torch.eye(T, dtype=u_BTD.dtype, device=u_BTD.device)[:, :, None].expand(T, T, D).repeat(B, 1, 1)
        streams = (x.repeat_interleave(T, 0) for x in (dt_BTD, B_BTGN, C_BTGN))
        dt, key, query = streams
        state = torch.zeros(B * T, D, A_DN.shape[1], dtype=A_DN.dtype, device=u.device)
        y, _ = scan.scan(u, dt, A_DN, key, query, state)
        y_BTDS = y.unflatten(0, (B, T)).permute(0, 2, 3, 1)
        return self._read(name, y_BTDS, u_BTD[..., None], (dt_BTD[..., None] * A_DN.real).flatten(2))[..., 0]

    def attention(self, name, q_BTHK, k_BTGK, v_BTGV, *, window=None, scale=None, prefix=None, soft_cap=None):
        if prefix is not None:
            return super().attention(name, q_BTHK, k_BTGK, v_BTGV, window=window, scale=scale, prefix=prefix, soft_cap=soft_cap)
        scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
        nothing = torch.zeros(len(q_BTHK), 0, dtype=torch.bool, device=q_BTHK.device)
        y = attention.attention(q_BTHK, k_BTGK, _units(v_BTGV), nothing, window=window, scale=scale, soft_cap=soft_cap)
        return self._read(name, y, v_BTGV.repeat_interleave(q_BTHK.shape[2] // v_BTGV.shape[2], 2), None)

    def _read(self, name: str, y_BTHS: Tensor, v_BTHV: Tensor, log_decay: Tensor | None) -> Tensor:
        map_BHTS = y_BTHS.transpose(1, 2)
        self.seen[name] = Seen(map_BHTS, log_decay)
        return torch.einsum("bhts,bshv->bthv", map_BHTS, v_BTHV)


def _units(v_BTHV: Tensor) -> Tensor:
    """`[B, T, H, T]`: the value of each token is its own unit vector."""
    B, T, H, _ = v_BTHV.shape
    return torch.eye(T, dtype=v_BTHV.dtype, device=v_BTHV.device)[:, None].expand(B, T, H, T)


@torch.no_grad()
def watched_layers(decoder: Decoder, tokens_BT: Tensor) -> Iterator[tuple[str, dict[str, Seen], float]]:
    """Of each layer its name, what was seen of it, and how far its output from the maps is from its output, over the largest."""
    kept: list[Tensor] = []
    decoder.hidden(F.embedding(tokens_BT, decoder.embedding), kept=kept)
    names = decoder.config.layer_names()
    for i, (name, block, x_BTD) in enumerate(zip(names, decoder.blocks, kept, strict=True)):
        normed = block.mixer_norm(x_BTD)
        watched = Watched(block.mixer, normed)
        ours, right = block.mixer.mix(normed, watched), block.mixer(normed)[0]
        yield f"{i} {name}", watched.seen, float((ours - right).abs().max() / right.abs().max())


def decoder_of(subject: Subject, task: str) -> Decoder:
    """Raises ConfigError: the model is not our own decoder, read in parallel."""
    decoder = getattr(subject.model, "decoder", None)
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"{task} looks inside a decoder of ours, which {subject.name} is not; use a run or an export of one")
    return decoder
