"""Titans' variants: steps are one pass at length, the layer is the paper's loop, impossible settings are refused."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from llm.docs import Docs
from llm.errors import ConfigError
from llm.init import initialise
from llm.mixers.titans import Titans, TitansConfig
from llm.sequence import Seq

WIDTH, HEADS, TOKENS = 16, 2, 1000
VARIANTS = {
    "mag": {"variant": "mag", "window": 20, "persistent": 2},
    "mal": {"variant": "mal", "window": 20, "depth": 2},
    "mac": {"variant": "mac", "chunk": 16, "persistent": 2},
}


def layer(dtype: torch.dtype = torch.float32, **settings) -> Titans:
    mixer = Titans(TitansConfig(heads=HEADS, **settings), WIDTH).to(dtype)
    initialise(mixer, seed=0, depth=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (mixer.rate_weight, mixer.initial_out):
            parameter.normal_(std=WIDTH**-0.5, generator=generator)
    return mixer


@pytest.mark.parametrize("name", VARIANTS)
def test_thousand_steps_are_one_pass(name):
    mixer = layer(**VARIANTS[name])
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(2, TOKENS, dtype=torch.bool)
    starts[0, [0, 300]] = starts[1, [0, 301, 777]] = True
    with torch.no_grad():
        whole, _ = mixer(x, None, Docs(starts))
        state, steps = mixer.init_state(2), []
        for t in range(TOKENS):
            y, state = mixer.step(x[:, t], state, starts[:, t])
            steps.append(y)
    assert (torch.stack(steps, 1) - whole).norm() / whole.norm() <= 1e-4
    assert all(state[key].shape[1:] == spec.shape for key, spec in mixer.full_state_spec().items())


def test_layer_is_the_paper_s_loop():
    """Equations 8-15 with their data-dependent rates, one token of one head at a time; the gradient is autograd's."""
    mixer, chunk = layer(torch.float64, chunk=5), 5
    x = torch.randn(1, 23, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        padded = F.pad(mixer.qkv_proj(x)[0], (0, 0, 3, 0))
        qkv = F.silu(torch.stack([(padded[t : t + 4] * mixer.conv_weight.T).sum(0) for t in range(23)]))
        q, k, v = qkv.view(23, 3, HEADS, -1).unbind(1)
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        rates = (x[0] @ mixer.rate_weight.T).view(23, 3, HEADS)
        alpha = 1 - (rates[:, 0] + mixer.keep_bias).sigmoid()
        eta = (rates[:, 1] + mixer.momentum_bias).sigmoid()
        theta = (1 - eta) * (rates[:, 2] + mixer.step_bias).sigmoid() / chunk
    reads = torch.empty(23, HEADS, WIDTH // HEADS, dtype=torch.float64)
    for h in range(HEADS):
        memory, surprise = mixer.initial_out.detach()[h], 0.0
        for t in range(23):
            if t % chunk == 0:
                start = memory.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((k[t, h] @ start - v[t, h]).square().sum(), start)
            surprise = eta[t, h] * surprise - theta[t, h] * gradient
            memory = (1 - alpha[t, h]) * memory + surprise
            reads[t, h] = q[t, h] @ memory
    normed = F.layer_norm(reads, reads.shape[-1:], eps=1e-6).flatten(-2)
    want = mixer.out_proj(normed * F.silu(mixer.gate_proj(x[0])))
    torch.testing.assert_close(mixer(x)[0][0], want, rtol=1e-10, atol=1e-12)


def test_attention_sees_persistent_tokens_and_the_window():
    """A softmax over the learned keys and the window's, written out; in mag the memory's reads are its gate."""
    mixer = layer(torch.float64, variant="mag", window=3, persistent=2, rope_theta=None)
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = mixer.attention_proj(x[0]).view(9, 3, HEADS, -1).unbind(1)
    attended = torch.empty_like(q)
    for t in range(9):
        near = slice(max(0, t - 2), t + 1)
        for h in range(HEADS):
            keys, values = torch.cat([mixer.persistent_k[:, h], k[near, h]]), torch.cat([mixer.persistent_v[:, h], v[near, h]])
            attended[t, h] = (keys @ q[t, h] * q.shape[-1] ** -0.5).softmax(-1) @ values
    normed = F.layer_norm(attended, q.shape[-1:], eps=1e-6).flatten(-2)
    reads = mixer.remember(x, Seq(mixer.init_state(1, dtype=torch.float64), True, None, 9))
    torch.testing.assert_close(mixer(x)[0], mixer.out_proj(normed * F.silu(reads)))


def rotated(x: torch.Tensor, slot: int) -> torch.Tensor:
    """Rotary position in the half-split layout, as complex numbers."""
    half = x.shape[-1] // 2
    angle = slot * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("depth", [1, 2])
def test_memory_as_context_is_the_paper_s_loop(depth):
    """Equations 21-25 one token of one head at a time; a token sees neither what later ones retrieve nor their updates."""
    mixer, chunk, T = layer(torch.float64, variant="mac", chunk=5, persistent=2, depth=depth), 5, 18
    x = torch.randn(1, T, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    K = WIDTH // HEADS

    def recall(memory: list[torch.Tensor], asked: torch.Tensor) -> torch.Tensor:
        return asked @ memory[0] if depth == 1 else F.silu(asked @ memory[0]) @ memory[1]

    with torch.no_grad():
        padded = F.pad(mixer.query_proj(x)[0], (0, 0, 3, 0))
        queries = F.silu(torch.stack([(padded[t : t + 4] * mixer.conv_weight.T).sum(0) for t in range(T)])).view(T, HEADS, K)
        q, k, v = mixer.attention_proj(x[0]).view(T, 3, HEADS, K).unbind(1)
    attended, reads = torch.empty_like(q), torch.empty_like(q)
    for h in range(HEADS):
        initial = [mixer.initial_out] if depth == 1 else [mixer.initial_hidden, mixer.initial_out]
        memory = [w.detach()[h] for w in initial]
        surprise = [torch.zeros_like(w) for w in memory]
        biases = torch.stack([mixer.keep_bias[h], mixer.momentum_bias[h], mixer.step_bias[h]]).detach()
        maps = [w.detach()[h] for w in (mixer.retrieved_weight, mixer.memorised_weight, mixer.rate_weight)]
        for t in range(T):
            if t % chunk == 0:
                start = [w.clone().requires_grad_() for w in memory]
                keys, values = list(mixer.persistent_k.detach()[:, h]), list(mixer.persistent_v.detach()[:, h])
            retrieved = recall([w.detach() for w in start], queries[t, h] / queries[t, h].norm())
            of_memory = maps[0] @ retrieved
            keys += [rotated(of_memory[:K], t % chunk), rotated(k[t, h], t % chunk)]
            values += [of_memory[K:], v[t, h]]
            scores = torch.stack(keys) @ rotated(q[t, h], t % chunk) * K**-0.5
            attended[t, h] = scores.softmax(-1) @ torch.stack(values)
            asked, key, value = F.silu(maps[1] @ attended[t, h]).view(3, K)
            keep, eta, raw = (maps[2] @ attended[t, h] + biases).sigmoid()
            loss = (recall(start, key / key.norm()) - value).square().sum()
            gradient = torch.autograd.grad(loss, start)
            surprise = [eta * s - (1 - eta) * raw / chunk * g for s, g in zip(surprise, gradient, strict=True)]
            memory = [keep * w + s for w, s in zip(memory, surprise, strict=True)]
            reads[t, h] = recall(memory, asked / asked.norm())
    a, m = (F.layer_norm(part, part.shape[-1:], eps=1e-6).flatten(-2) for part in (attended, reads))
    torch.testing.assert_close(mixer(x)[0][0], mixer.out_proj(a * F.silu(m)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [-4.0, 0.0, 4.0, 8.0])
@pytest.mark.parametrize("varying", [0.0, 4.0])
def test_a_linear_memory_stays_bounded_when_all_keys_are_one(momentum, varying):
    """At the largest steps, with next to no forgetting, over 64 chunks; weights that pass 10 times the values are growing."""
    mixer = layer()
    seen = []
    seq = Seq(mixer.init_state(1), True, None, 4096)
    with torch.no_grad():
        mixer.rate_weight.mul_(varying)
        mixer.keep_bias.fill_(12.0)
        mixer.momentum_bias.fill_(momentum)
        mixer.step_bias.fill_(12.0)
        x = torch.randn(1, 4096, WIDTH, generator=torch.Generator().manual_seed(0))
        right = Seq.memory

        def memory(self, name, q, k, v, *rest, **kw):
            seen.append(v.abs().max())
            return right(self, name, q, torch.ones_like(k) / k.shape[-1] ** 0.5, v, *rest, **kw)

        with patch.object(Seq, "memory", memory):
            mixer.remember(x, seq)
    assert seq.new_state["memory.weights.0"].abs().max() <= 10 * seen[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "mem"}, "must be one of memory, mac, mag, mal"),
        ({"window": 5}, "belongs to variants mag and mal"),
        ({"variant": "mac", "window": 5}, "segments of mac are model.layers.t.mixer.chunk tokens"),
        ({"persistent": 5}, "variant memory has not"),
        ({"variant": "mag"}, "use 1 or more"),
        ({"variant": "mal", "window": 4, "persistent": -1}, "use 0 or more"),
        ({"variant": "mal", "window": 4, "heads": 16}, "rope_theta=null"),
        ({"depth": 3}, "use 1 or 2"),
        ({"chunk": 0}, "must be at least 1"),
        ({"step_max": 0.0}, "must be positive"),
        ({"heads": 3}, "use a divisor"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        replace(TitansConfig(heads=HEADS), **settings).check("model.layers.t.mixer", WIDTH)
