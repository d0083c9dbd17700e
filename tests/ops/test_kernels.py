"""The choice of kernels on a simulated GPU, what becomes of packages that cannot be had, and calls of kernels in CUDA alone.

Those run here as `tests/kernels/cuda_forms.py` has them; Triton's own run in its interpreter (`make test-kernels`).
"""

import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map_only

from llm.docs import Docs, Stretch
from llm.errors import ConfigError
from llm.ops import dispatch, kernels, norm, rotary, routes, swiglu
from llm.ops.cross_entropy import cross_entropy
from llm.ops.kernels import Facts, KernelsConfig, Route
from llm.train.config import load_config
from tests.kernels import cuda_forms
from tests.kernels.cases import B, Case, attention_streams, conv_streams, differences, linear_streams, run, scan_streams, stretch
from tests.kernels.interpreter import device

CONV = Case("conv", "conv", "causal_conv1d", conv_streams)
SCAN = Case("scan", "scan", "mamba_ssm", scan_streams)
FLASH = [
    Case(f"flash {past} {settings}", "attention", "flash", attention_streams(past), {"scale": 0.3, **settings})
    for past in (0, 7)
    for settings in ({}, {"window": 5}, {"soft_cap": 3.0})
]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("case", [CONV, SCAN, *FLASH], ids=lambda case: case.name)
def test_calls_of_cuda_kernels_are_the_definition(case, documents):
    """flash-attn takes no float32, so its bound is fp16's."""
    dtype, bound = (torch.float16, 2e-3) if case.route == "flash" else (torch.float32, 1e-5)
    with cuda_forms.installed(), device():
        found, _ = differences(case, dtype, documents)
    assert max(found.values()) <= bound, found


@pytest.mark.parametrize("case", [CONV, SCAN, FLASH[0], FLASH[4]], ids=lambda case: case.name)
def test_nothing_before_a_start_touches_it_in_cuda_kernels(case):
    torch.manual_seed(0)
    dtype = torch.float16 if case.route == "flash" else torch.float32
    streams = tree_map_only(torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, case.streams(case.tokens))
    starts = torch.zeros(B, case.tokens, dtype=torch.bool)
    starts[:, 40] = True
    other = dict(streams)
    for name, x in streams.items():
        past = x.shape[1] - case.tokens + 40 if name in ("k", "v") else 40
        if name in ("tail", "state"):
            other[name] = 3 * x
        elif x.ndim > 2 and x.is_floating_point():
            other[name] = torch.cat([3 * x[:, :past].abs(), x[:, past:]], 1)
    with cuda_forms.installed(), device():
        (y, *state), (moved, *moved_state) = (run(case, s, stretch(case, starts)) for s in (streams, other))
    assert not torch.equal(y[:, :40], moved[:, :40])
    assert torch.equal(y[:, 40:], moved[:, 40:])
    assert all(torch.equal(a, b) for a, b in zip(state, moved_state, strict=True))


@pytest.mark.parametrize("fault", ["numbers", "scale", "window", "cache"])
def test_planted_faults_in_calls_of_cuda_kernels_are_seen(fault):
    """Documents' numbers dropped, another scale, a window that counts without the token, keys and values swapped."""
    conv, varlen = cuda_forms.causal_conv1d_fn, cuda_forms.flash_attn_varlen_func

    def faulty_varlen(q, k, v, *cuts, **settings):
        if fault == "cache":
            k, v = v, k
        if fault == "scale":
            settings["softmax_scale"] *= 1.1
        if fault == "window":
            settings["window_size"] = (settings["window_size"][0] + 1, 0)
        return varlen(q, k, v, *cuts, **settings)

    case = CONV if fault == "numbers" else FLASH[4]
    forms = {
        "causal_conv1d:causal_conv1d_fn": lambda x, weight, bias, seq_idx: conv(x, weight, bias),
        "flash_attn:flash_attn_varlen_func": faulty_varlen,
    }
    with cuda_forms.installed(**forms), device():
        found, _ = differences(case, torch.float32 if case is CONV else torch.float16, documents=True)
    assert max(found.values()) > 1e-2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"window": 5}, {"soft_cap": 3.0}, {"prefix": True, "window": 5}], ids=str)
@pytest.mark.parametrize("past", [0, 7])
def test_flex_attention_is_the_definition(past, settings, monkeypatch):
    """Uncompiled, forward and backward; PyTorch offers the latter on GPUs alone."""
    flex = sys.modules[kernels.entry("torch.nn.attention.flex_attention:flex_attention").__module__]
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    if settings.get("prefix"):
        settings = settings | {"prefix": tuple(torch.randn(3, 2, 16) for _ in "kv")}
    case = Case("flex", "attention", "flex", attention_streams(past), {"scale": 0.3, **settings})
    with device():
        found, _ = differences(case, torch.float32, documents=True)
    assert max(found.values()) <= 1e-5, found


def call(dtype=torch.bfloat16, **facts) -> Facts:
    return Facts(dtype, (9, 0), tokens=64, **facts)


def op(x, *streams, at, **settings):
    return "the kernel"


PLAIN = Route("torch kernel", "torch", "torch:zeros", "dev", op)


@pytest.mark.parametrize(
    ("route", "facts", "words"),
    [
        ({"capability": (9, 1)}, {}, "needs compute capability 9.1"),
        ({}, {"dtype": torch.float64}, "computes in bf16, fp16, not in fp64"),
        ({"dtypes": (torch.float32,)}, {"dtype": torch.float32}, "TF32"),
        ({"widths": {"K": (16, 256, 16)}}, {"sizes": {"K": 24}}, "K=24"),
        ({"widths": {"K": (16, 256, 16)}}, {"sizes": {"K": 512}}, "K=512"),
        ({"documents": False}, {"documents": True}, "cannot start a document inside a row"),
        ({"initial_state": False}, {"carried": True}, "starts from no state"),
        ({"gradient": False}, {"gradient": True}, "no exact gradient"),
        ({"state_gradient": False}, {"handed_on": True}, "parallel.mode=heads"),
        ({"int32": True}, {"extent": 1 << 31}, "2,147,483,648"),
    ],
)
def test_a_route_refuses_what_it_cannot_obey_and_says_why(route, facts, words, capsys):
    rows = [Route("torch kernel", "torch", "torch:zeros", "dev", op, **route)]
    assert kernels.choose("linear", rows, call(**facts), "auto") is None
    said = capsys.readouterr().err
    assert said.startswith("linear: PyTorch")
    assert words in said
    assert said.count("\n") == 1
    with pytest.raises(ConfigError, match=r"kernels\.linear") as refused:
        kernels.choose("linear", rows, call(**facts), "torch kernel")
    assert words in str(refused.value)
    able = replace(PLAIN, dtypes=[*kernels.NAMES], exact_float32=True)
    assert kernels.choose("linear", [*rows, able], call(**facts), "auto") is able


@pytest.mark.parametrize("family", ["linear", "ssd", "mlstm"])
def test_gates_have_no_gradient_by_fla_where_triton_has_it_wrong(family, monkeypatch):
    (route,) = [row for row in routes.ROUTES[family] if row.function == "chunk_simple_gla"]
    special = {"decay": "per head"} if family == "linear" else {}
    gated = call(special=special)
    for triton, right in {"3.3.1": True, "3.4.0": False, "3.6.0": False, "3.7.1": True, "": True}.items():
        monkeypatch.setattr(kernels, "version", lambda _, triton=triton: triton)
        assert (route.refusal(gated) is None) is right
    monkeypatch.setattr(kernels, "version", lambda _: "3.6.0")
    assert "Triton 3.7.1" in route.refusal(gated)
    right = {"no gradient": replace(gated, gradient=False), "Ampere": replace(gated, capability=(8, 0))}
    if family == "linear":
        right["no gates"] = call(special={"decay": "fixed", "gated": False})
    assert {name: route.refusal(facts) for name, facts in right.items()} == dict.fromkeys(right)


def chosen(op, *streams, **settings) -> str:
    """Which kernel the only call of `op` would take on a simulated H100, or why none."""
    with kernels.simulated((9, 0), KernelsConfig()) as calls:
        op(*streams, **settings)
    ((_, route, why),) = calls
    return route.function if route else why


half, double = torch.bfloat16, torch.float64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: chosen(norm.rms_norm, torch.zeros(2, 8, dtype=half), torch.ones(8), 1e-6), "rms_norm"),
        (lambda: chosen(norm.rms_norm, torch.zeros(2, 8, dtype=half), None, 1e-6), "rms_norm"),
        (lambda: chosen(norm.rms_norm, torch.zeros(2, 8, dtype=double), None, 1e-6), "not in fp64"),
        (lambda: chosen(norm.rms_norm, torch.zeros(1, 16385), None, 1e-6), "D=16385"),
        (lambda: chosen(norm.head_norm, torch.zeros(1, 2, 2, 8), torch.ones(2, 8), None, 1e-6), "group_norm"),
        (lambda: chosen(swiglu.swiglu, torch.zeros(2, 8, dtype=half), torch.zeros(2, 8, dtype=half)), "swiglu"),
        (lambda: chosen(swiglu.swiglu, torch.zeros(2, 8, dtype=half), torch.zeros(2, 8)), "in one dtype, not in bf16 and fp32"),
        (lambda: chosen(rotary.rotary, torch.zeros(1, 4, 2, 8, dtype=half), torch.zeros(1, 4), 1e4), "apply_rotary_emb"),
        (lambda: chosen(rotary.rotary, torch.zeros(1, 4, 2, 512, dtype=half), torch.zeros(1, 4), 1e4), "K=512"),
        (lambda: chosen(rotary.rotary, torch.zeros(1, 1, 1, 2).expand(8, 1 << 16, 1, 2), torch.zeros(8, 1 << 16), 1e4), "65,536"),
        (lambda: chosen(rotary.rotary, torch.zeros(1, 4, 2, 8).double(), torch.zeros(1, 4), 1e4), "not in fp64"),
        (lambda: chosen(cross_entropy, *torch.zeros(2, 2, 8, dtype=half), torch.tensor([0, -100]), cap=2.0), "cross_entropy_fwd"),
        (lambda: chosen(cross_entropy, *torch.zeros(2, 2, 8, dtype=double), torch.tensor([0, -100])), "not in fp64"),
    ],
)
def test_kernels_of_single_tokens_take_what_they_can(call, words):
    """Weights that stay float32 under bf16, no weight, a cap and ignored labels are no reason to refuse."""
    assert words in call()


def test_the_choice_is_said_once(capsys):
    for _ in range(3):
        assert kernels.choose("linear", [PLAIN], call(sizes={"K": 128}), "auto") is PLAIN
    assert capsys.readouterr().err == f"linear: torch {torch.__version__} zeros, because CUDA 9.0, bf16, K=128\n"
    assert kernels.choose("linear", [PLAIN], call(), "torch") is None
    assert capsys.readouterr().err == "linear: PyTorch, because kernels.linear=torch\n"


@pytest.fixture(autouse=True)
def afresh():
    kernels.use(KernelsConfig())


def test_an_absent_package_is_named_with_what_installs_it(capsys):
    rows = [Route("absent", "no-such-kernels", "no_such_kernels:run", "fla", op)]
    assert kernels.choose("scan", rows, call(), "auto") is None
    assert "no-such-kernels is not installed: pip install 'braid-lm[fla]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('x.so: undefined symbol: _ZN3c105ErrorE')", ["undefined symbol", "C++11 ABI", "--no-build-isolation"]),
        ("import broken_cuda", ["broken_cuda", "--force-reinstall"]),
        ("import no_such_dependency", ["needs the package no_such_dependency"]),
        ("", ["cannot be imported", "has no attribute 'run'"]),
    ],
)
def test_a_package_that_cannot_be_imported_says_how_to_rebuild_it(tmp_path, monkeypatch, text, words):
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    reason = kernels.missing(Route("broken", "broken", f"{name}:run", "fla", op))
    assert all(word in reason for word in words), reason


def test_a_kernel_asked_for_by_name_is_looked_for_before_anything_starts(monkeypatch):
    config = KernelsConfig(linear="fla")
    with pytest.raises(ConfigError, match=r"kernels.linear \(fla\) runs on CUDA devices, and this run is on cpu"):
        kernels.check(config, routes.ROUTES, torch.device("cpu"))
    rows = {"linear": [Route("fla", "no-such-kernels", "no_such_kernels:run", "fla", op)]}
    with pytest.raises(ConfigError, match=r"is not installed: .*; or use kernels.linear=auto"):
        kernels.check(config, rows, torch.device("cuda"))
    kernels.check(KernelsConfig(linear="torch"), rows, torch.device("cuda"))


def test_a_trained_model_runs_by_its_runs_kernels_and_by_others_on_request(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda route: None)
    config, cpu, cuda = KernelsConfig(linear="torch", scan="fla"), torch.device("cpu"), torch.device("cuda")
    for place, words, wanted in (
        (cpu, [], ("auto", "auto")),
        (cpu, ["kernels.linear=torch"], ("torch", "auto")),
        (cuda, [], ("torch", "fla")),
        (cuda, ["kernels.linear=fla"], ("fla", "fla")),
    ):
        routes.set_routes_of_run(config, place, words)
        assert (kernels.asked("ssd"), kernels.asked("scan")) == wanted
    with pytest.raises(ConfigError, match=r"kernels.linear \(fla\) runs on CUDA devices, and this run is on cpu"):
        routes.set_routes_of_run(config, cpu, ["kernels.linear=fla"])
    with pytest.raises(ConfigError, match=r"kernels.linar: .*Did you mean: 'linear'"):
        routes.set_routes_of_run(config, cuda, ["kernels.linar=fla"])


def test_every_name_of_the_config_is_a_kernels():
    for setting, annotation in KernelsConfig.__annotations__.items():
        families = [family for family in routes.ROUTES if kernels.SETTING.get(family, family) == setting]
        names = {route.name for family in families for route in routes.ROUTES[family]}
        assert set(annotation.__args__) == names | {"auto", "torch"}, setting


def test_kernels_are_a_part_of_the_config():
    assert load_config(["configs/exp/tiny.yaml", "kernels.linear=fla"]).kernels.linear == "fla"
    with pytest.raises(ConfigError, match=r"kernels\.linear"):
        load_config(["configs/exp/tiny.yaml", "kernels.linear=cuda"])


def test_tensors_on_a_cpu_take_no_kernel():
    case = Case("linear", "linear", "auto", linear_streams("per head"))
    with kernels.using(linear="fla"):
        y, _ = dispatch.run("linear", 70, *case.streams(70).values(), at=stretch(case, None))
    assert y.shape == (B, 70, 2, 16)


def test_one_token_runs_the_definition_on_any_device():
    case = Case("linear", "linear", "auto", linear_streams("per head"), tokens=1)
    with device(), kernels.using(linear="fla"):
        dispatch.run("linear", 1, *case.streams(1).values(), at=stretch(case, None))


def test_boundaries_are_told_from_host_memory(monkeypatch):
    """On a device starts are not read: here they cannot be."""
    docs = Docs.from_lengths([[3, 2, 4], [9]]).to("meta")
    segments = docs.segments
    assert segments.host.tolist() == [0, 3, 5, 9, 18]
    assert (segments.max_len, docs.cut, docs.most_starts) == (9, True, 3)
    assert segments.cu_seqlens.device.type == "meta"
    assert docs[4:].segments.host.tolist() == [0, 1, 5, 10]
    assert docs.rows(slice(1, 2)).cut is False


def test_states_enter_and_leave_segments():
    starts = torch.tensor([[False, False, True], [True, False, False]])
    segments = Docs(starts).segments
    state = torch.tensor([[5.0], [7.0]])
    assert segments.entering(state).tolist() == [[5.0], [0.0], [0.0]]
    assert segments.leaving(torch.tensor([[1.0], [2.0], [3.0]])).tolist() == [[2.0], [3.0]]


def test_layers_share_a_batchs_boundaries():
    docs = Docs.from_lengths([[3, 2]])
    stretches = [Stretch(docs, torch.zeros(1), 0, 5, True) for _ in range(2)]
    assert stretches[0].documents is stretches[1].documents is docs
