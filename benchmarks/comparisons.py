"""What the mixers are measured against: per comparison the sides to run in turns, its work, and how much faster ours has to be.

Width 512, 8 heads, batch 1. A core is the op on given streams, from zero states; a layer has its projections around it. Peers come
from `tests/peers/requirements.txt` (`make peers`) and `transformers`.
"""

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm import cost
from llm.init import ROLES, initialise, parameter_roles
from llm.mixers import MIXERS
from llm.ops import dispatch
from llm.ops.memory.naive import Memory
from llm.ops.recurrent.cells import CELLS
from tests.peers import peers

WIDTH, HEADS, K, CHUNK = 512, 8, 64, 64
INNER, STATES = 2 * WIDTH, 16
OURS = "ours"

Side = Callable[[], Tensor]
Sides = dict[str, Side]


@dataclass(frozen=True)
class Comparison:
    """sides: of (tokens, dtype), ours first. work: forward FLOPs per token of ours. floors: (peer, tokens) -> least ratio.

    recurrent: whether the time must grow like that of the projections. peers_until: tokens from which on others take minutes.
    """

    sides: Callable[[int, torch.dtype], Sides]
    work: float
    floors: dict[tuple[str, int], float] = field(default_factory=dict)
    recurrent: bool = True
    peers_until: int | None = None


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return leaf(torch.randn(shape).to(dtype))


def both(floor: float, *names: str, tokens: tuple[int, ...] = (2048, 8192)) -> dict[tuple[str, int], float]:
    return {(name, T): floor for name in names for T in tokens}


def run(family: str, tokens: int, *streams, **settings):
    return dispatch.run(family, tokens, *streams, **settings)


# Cores


def linear(gated: bool) -> Callable[[int, torch.dtype], Sides]:
    def sides(T: int, dtype: torch.dtype) -> Sides:
        q, k, v = (normal(1, T, HEADS, K, dtype=dtype) for _ in range(3))
        log_decay = leaf(-torch.rand(1, T, HEADS)) if gated else torch.log1p(-(2.0 ** (-5.0 - torch.arange(HEADS))))
        per_token = log_decay if gated else log_decay.expand(1, T, HEADS)
        state = torch.zeros(1, HEADS, K, K)
        ssd = peers.load("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
        return {
            OURS: lambda: run("linear", T, q, k, v, log_decay, state)[0],
            "ssd_minimal": lambda: ssd(v, per_token.to(dtype), k, q, CHUNK)[0],
        } | {"mlstm_kernels": mlstm_kernels("custbw", T, dtype)}

    return sides


def mamba2(T: int, dtype: torch.dtype) -> Sides:
    """Mamba-2 as published: 16 heads of 64 read one group of 128 states; steps and rates make inputs and decays."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    heads, states = MAMBA2["heads"], MAMBA2["state"]
    x, B, C = normal(1, T, heads, INNER // heads, dtype=dtype), *(normal(1, T, 1, states, dtype=dtype) for _ in range(2))
    dt, A = leaf(0.1 * torch.rand(1, T, heads)), leaf(-torch.arange(1.0, heads + 1))
    state = torch.zeros(1, heads, states, INNER // heads)

    def theirs() -> Tensor:
        out = mamba2_chunk_scan(x, dt, A, B, C, chunk_size=256)
        return out[0] if isinstance(out, tuple) else out

    return {OURS: lambda: run("linear", T, C, B, x * dt[..., None].to(dtype), dt * A, state)[0], "transformers": theirs}


def mlstm_kernels(gradient: str, T: int, dtype: torch.dtype) -> Side:
    kernel = getattr(peers.load("mlstm_kernels.torch.chunkwise.native.fwbw"), f"mlstm_chunkwise__native_{gradient}")
    q, k, v = (normal(1, HEADS, T, K, dtype=dtype) for _ in range(3))
    i, f = (leaf((torch.randn(1, HEADS, T) + bias).to(dtype)) for bias in (0.0, 3.0))
    kernel_dtype = {"autocast_kernel_dtype": dtype} if gradient == "custbw" else {}
    return lambda: kernel(q, k, v, i, f, chunk_size=CHUNK, **kernel_dtype)


def mlstm(T: int, dtype: torch.dtype) -> Sides:
    q, k, v = (normal(1, T, HEADS, K, dtype=dtype) for _ in range(3))
    i, f = leaf(torch.randn(1, T, HEADS)), leaf(torch.randn(1, T, HEADS) + 3)
    state = (torch.zeros(1, HEADS, K, K), torch.zeros(1, HEADS, K), torch.zeros(1, HEADS))
    return {
        OURS: lambda: run("mlstm", T, q, k, v, i, F.logsigmoid(f), state, scale=K**-0.5)[0],
        "mlstm_kernels": mlstm_kernels("custbw", T, dtype),
        "mlstm_kernels, exact": mlstm_kernels("autograd", T, dtype),
    }


@contextmanager
def mambapy_in_transformers():
    """transformers looks for mambapy when its scan runs."""
    from transformers.models.mamba import modeling_mamba

    pscan = peers.load("mambapy.pscan")
    found = {"mambapy": sys.modules.get("mambapy", pscan), "mambapy.pscan": pscan}
    with patch.dict(sys.modules, found), patch.object(modeling_mamba, "is_mambapy_available", lambda: True):
        yield modeling_mamba


def scan(T: int, dtype: torch.dtype) -> Sides:
    u, B, C = normal(1, T, INNER, dtype=dtype), normal(1, T, STATES, dtype=dtype), normal(1, T, STATES, dtype=dtype)
    dt, A = leaf(0.1 * torch.rand(1, T, INNER)), leaf(-torch.arange(1.0, STATES + 1).expand(INNER, STATES).contiguous())
    state = torch.zeros(1, INNER, STATES)
    u_t, dt_t, B_t, C_t = (leaf(x.detach().transpose(1, 2).contiguous()) for x in (u, dt, B, C))

    def theirs() -> Tensor:
        with mambapy_in_transformers() as mamba:
            out = mamba.mamba_selective_scan(u_t, dt_t, A, B_t, C_t, use_mambapy=True)
        return out[0] if isinstance(out, tuple) else out

    return {OURS: lambda: run("scan", T, u, dt, A, B[:, :, None], C[:, :, None], state)[0], "transformers + mambapy": theirs}


def cell(name: str) -> Callable[[int, torch.dtype], Sides]:
    def sides(T: int, dtype: torch.dtype) -> Sides:
        M = CELLS[name].gates
        x, R, bias = normal(1, T, HEADS, M, K, dtype=dtype), leaf(torch.randn(HEADS, M, K, K) / K**0.5), normal(HEADS, M, K)
        state = tuple(torch.zeros(1, HEADS, K) for _ in CELLS[name].states)
        found = {OURS: lambda: run("recurrent", T, x, R, bias, state, cell=name)[0]}
        if name == "gru":
            return found
        vanilla = peers.load("xlstm.blocks.slstm.src.vanilla")
        steps = leaf(x.detach().float().permute(1, 0, 3, 2, 4).flatten(2).contiguous())
        R_flat, bias_flat = leaf(R.detach().flatten(1, 2)), leaf(bias.detach().transpose(0, 1).flatten())
        before, pointwise = torch.zeros(len(state), 1, WIDTH), vanilla.slstm_pointwise_function_registry[name]
        return found | {"xlstm": lambda: vanilla.slstm_forward(steps, before, R_flat, bias_flat, pointwise)[0]}

    return sides


def titans(T: int, dtype: torch.dtype) -> Sides:
    """Beside titans-pytorch's memory with its four projections left out: tokens are their own queries, keys and values."""
    theirs, x = their_titans(dtype)["titans-pytorch"], normal(1, T, WIDTH, dtype=dtype)
    for name in ("to_queries", "to_keys", "to_values", "combine_heads"):
        setattr(theirs, name, nn.Identity())
    return memory((K, K))(T, dtype) | {"titans-pytorch": lambda: first_of(theirs(x))}


def memory(sizes: tuple[int, ...]) -> Callable[[int, torch.dtype], Sides]:
    def sides(T: int, dtype: torch.dtype) -> Sides:
        q, k = (leaf(F.normalize(torch.randn(1, T, HEADS, K), dim=-1)) for _ in range(2))
        v = normal(1, T, HEADS, K, dtype=dtype)
        gates = [leaf(F.logsigmoid(torch.randn(1, T, HEADS) + b)) for b in (4.0, 0.0)] + [leaf(torch.rand(1, T, HEADS) / CHUNK)]
        initial = tuple(leaf(torch.randn(HEADS, i, o) / i**0.5) for i, o in pairwise(sizes))
        zero = tuple(torch.zeros(1, HEADS, i, o) for i, o in pairwise(sizes))
        packed = torch.arange(T)[None] % 200
        streams = (q, k, v, *gates, initial, Memory(zero, zero, zero))
        return {
            OURS: lambda: run("memory", T, *streams, None, chunk=CHUNK)[0],
            "ours, documents of 200": lambda: run("memory", T, *streams, packed, chunk=CHUNK)[0],
        }

    return sides


def attention(T: int, dtype: torch.dtype) -> Sides:
    q, k, v = (normal(1, T, HEADS, K, dtype=dtype) for _ in range(3))
    first = [leaf(x.detach().transpose(1, 2).contiguous()) for x in (q, k, v)]
    valid = torch.ones(1, 0, dtype=torch.bool)
    return {
        OURS: lambda: run("attention", T, q, k, v, valid, None, scale=K**-0.5),
        "SDPA": lambda: F.scaled_dot_product_attention(*first, is_causal=True),
        "ours, window 256": lambda: run("attention", T, q, k, v, valid, None, scale=K**-0.5, window=256),
        "ours, soft cap": lambda: run("attention", T, q, k, v, valid, None, scale=K**-0.5, soft_cap=50.0),
    }


# Layers


def mixer(kind: str, dtype: torch.dtype, **settings) -> nn.Module:
    """As a run holds it: pinned parameters in float32."""
    config = MIXERS[kind][0](**settings)
    module = MIXERS[kind][1](config, WIDTH)
    initialise(module, seed=0, depth=1)
    for name, role in parameter_roles(module).items():
        if not ROLES[role].float32:
            module.get_parameter(name).data = module.get_parameter(name).to(dtype)
    return module


def layer(kind: str, peer: Callable[[torch.dtype], dict[str, nn.Module]] | None = None, **settings):
    def sides(T: int, dtype: torch.dtype) -> Sides:
        module, x = mixer(kind, dtype, **settings), normal(1, T, WIDTH, dtype=dtype)
        found: Sides = {OURS: lambda: module(x)[0]}
        for name, theirs in (peer(dtype) if peer else {}).items():
            found[name] = lambda theirs=theirs: first_of(theirs(x))
        return found

    return sides


def first_of(out: Tensor | tuple) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


class WithMambapy(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with mambapy_in_transformers():
            return self.inner(x)


def their_mamba(dtype: torch.dtype) -> dict[str, nn.Module]:
    from transformers.models.mamba import configuration_mamba, modeling_mamba

    config = configuration_mamba.MambaConfig(hidden_size=WIDTH, state_size=STATES, num_hidden_layers=1, use_mambapy=True)
    return {"transformers + mambapy": WithMambapy(modeling_mamba.MambaMixer(config, layer_idx=0).to(dtype))}


MAMBA2 = {"heads": 16, "state": 128}


def their_mamba2(dtype: torch.dtype) -> dict[str, nn.Module]:
    from transformers.models.mamba2 import configuration_mamba2, modeling_mamba2

    sizes = {"num_heads": MAMBA2["heads"], "head_dim": INNER // MAMBA2["heads"], "state_size": MAMBA2["state"], "n_groups": 1}
    config = configuration_mamba2.Mamba2Config(hidden_size=WIDTH, expand=2, chunk_size=256, num_hidden_layers=1, **sizes)
    return {"transformers": modeling_mamba2.Mamba2Mixer(config, layer_idx=0).to(dtype)}


def their_slstm(dtype: torch.dtype) -> dict[str, nn.Module]:
    theirs = peers.load("xlstm.blocks.slstm.layer")
    config = theirs.sLSTMLayerConfig(embedding_dim=WIDTH, num_heads=HEADS, backend="vanilla", dtype="float32")
    return {"xlstm": theirs.sLSTMLayer(config).to(dtype)}


def their_titans(dtype: torch.dtype) -> dict[str, nn.Module]:
    """One matrix per head, no norms; all chunks take their gradients at the initial weights, which is less work than ours."""
    module = peers.load("titans_pytorch.neural_memory")
    matrix = peers.load("titans_pytorch.memory_models").MemoryMLP(K, depth=1)
    settings = {"dim_head": K, "heads": HEADS, "chunk_size": CHUNK, "pre_rmsnorm": False, "mem_model_norm_add_residual": False}
    return {"titans-pytorch": module.NeuralMemory(dim=WIDTH, model=matrix, **settings).to(dtype)}


def projections(T: int, dtype: torch.dtype) -> Sides:
    x, weights = normal(T, WIDTH, dtype=dtype), [normal(WIDTH, WIDTH, dtype=dtype) for _ in range(4)]
    return {OURS: lambda: torch.stack([(x @ w) for w in weights])}


def flops_of(kind: str, **settings) -> float:
    return MIXERS[kind][0](**settings).cost(WIDTH, 2048, 4).flops


LINEAR = cost.linear(HEADS, K, K).flops
CELL = 2.0 * WIDTH * K
MAC = {"heads": HEADS, "variant": "mac", "chunk": CHUNK}
TITANS = {("titans-pytorch", 2048): 0.95, ("titans-pytorch", 8192): 1.05}

CORES: dict[str, Comparison] = {
    "retention": Comparison(linear(gated=False), LINEAR, both(1.4, "ssd_minimal", "mlstm_kernels")),
    "mamba2": Comparison(linear(gated=True), LINEAR, both(1.4, "ssd_minimal", "mlstm_kernels")),
    # transformers 5's form; that of 4.57 took 96 times as long as our whole layer
    "mamba2, one group": Comparison(mamba2, cost.linear(16, 128, 64, groups=1).flops, both(5.0, "transformers")),
    "mlstm": Comparison(mlstm, cost.mlstm(HEADS, K, K).flops, both(1.0, "mlstm_kernels", "mlstm_kernels, exact")),
    "mamba": Comparison(scan, cost.scan(INNER, STATES).flops, both(3.0, "transformers + mambapy")),
    "slstm": Comparison(cell("slstm"), 4 * CELL, both(5.0, "xlstm"), peers_until=2048),
    "lstm": Comparison(cell("lstm"), 4 * CELL, both(5.0, "xlstm"), peers_until=2048),
    "gru": Comparison(cell("gru"), 3 * CELL),
    "titans, a matrix": Comparison(titans, cost.memory(HEADS, (K, K), CHUNK).flops, TITANS),
    "titans, two matrices": Comparison(memory((K, 2 * K, K)), cost.memory(HEADS, (K, 2 * K, K), CHUNK).flops),
    "attention": Comparison(attention, cost.attention(HEADS, K, K, 2048, None).flops, both(0.95, "SDPA"), recurrent=False),
}

# transformers 5 rewrote its layer, which now spends a quarter to two fifths of its time in the projections, which are ours too
THEIR_MAMBA2 = 10.0 if version("transformers").startswith("4.") else 2.0
LAYERS: dict[str, Comparison] = {
    "projections": Comparison(projections, 8.0 * WIDTH * WIDTH, recurrent=False),
    "retention": Comparison(layer("retention", heads=HEADS), flops_of("retention", heads=HEADS)),
    "mamba": Comparison(layer("mamba", their_mamba), flops_of("mamba"), both(3.0, "transformers + mambapy")),
    "mamba2": Comparison(layer("mamba2", their_mamba2, **MAMBA2), flops_of("mamba2", **MAMBA2), both(THEIR_MAMBA2, "transformers")),
    "mlstm": Comparison(layer("mlstm", heads=HEADS), flops_of("mlstm", heads=HEADS)),
    "mlstm_paper": Comparison(layer("mlstm_paper", heads=HEADS), flops_of("mlstm_paper", heads=HEADS)),
    "slstm": Comparison(
        layer("slstm", their_slstm, heads=HEADS), flops_of("slstm", heads=HEADS), both(5.0, "xlstm"), peers_until=2048
    ),
    "lstm": Comparison(layer("lstm", heads=HEADS), flops_of("lstm", heads=HEADS)),
    "gru": Comparison(layer("gru", heads=HEADS), flops_of("gru", heads=HEADS)),
    "titans, a matrix": Comparison(layer("titans", their_titans, heads=HEADS), flops_of("titans", heads=HEADS)),
    "titans, two matrices": Comparison(layer("titans", heads=HEADS, depth=2), flops_of("titans", heads=HEADS, depth=2)),
    "titans, mac": Comparison(layer("titans", **MAC), flops_of("titans", **MAC)),
    "attention": Comparison(layer("attention", heads=HEADS), flops_of("attention", heads=HEADS), recurrent=False),
}
