"""`describe --kernels`: on this machine, on a simulated GPU, and for a config's layers."""

import pytest

from launch.describe import main
from llm.ops.routes import ROUTES

TINY = "configs/exp/tiny.yaml"


def test_every_kernel_has_a_row(capsys):
    assert main(["--kernels"]) == 0
    shown = capsys.readouterr().out
    for routes in ROUTES.values():
        assert all(route.package in shown for route in routes)
    assert "is not installed" in shown


def test_a_simulated_gpu_shows_what_a_configs_layers_run(capsys):
    assert main(["--kernels", "sm_90", TINY, "model.layers.a.mixer.window=8"]) == 0
    shown = capsys.readouterr().out
    assert "CUDA 9.0, simulated" in shown
    assert "flash-linear-attention chunk_simple_gla" in shown.partition("over packed documents")[2]
    for kernel in (
        "flash-attn flash_attn_varlen_func",
        "rms_norm",
        "group_norm",
        "apply_rotary_emb",
        "swiglu",
        "cross_entropy_fwd",
    ):
        assert kernel in shown.partition("over packed documents")[2]


def test_titans_memories_are_shown_with_what_keeps_them_from_the_kernel(capsys):
    layers = {"t": "heads: 2", "d": "heads: 2, depth: 2", "c": "heads: 2, variant: mac"}
    words = [f"model.layers.{name}={{mixer: {{kind: titans, {settings}}}}}" for name, settings in layers.items()]
    assert main(["--kernels", "sm_90", TINY, *words, "model.depth=5", "model.pattern=[t,d,c,r,a]"]) == 0
    shown = capsys.readouterr().out.partition("over packed documents")[2]
    assert "triton handed_on" in shown
    assert "holds a memory of one matrix, not of 2" in shown
    assert "context" in shown


def test_what_was_chosen_by_hand_holds_there_too(capsys):
    assert main(["--kernels", "sm_90", TINY, "kernels.attention=flex", "kernels.linear=torch"]) == 0
    shown = capsys.readouterr().out.partition("over packed documents")[2]
    assert "torch flex_attention" in shown
    assert "kernels.linear=torch" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sm_ninety"], "--kernels sm_ninety: a compute capability is written sm_80"),
        ([TINY], "this machine has no CUDA device"),
        (["sm_90", TINY, "kernels.linear=mamba_ssm"], "kernels.linear (mamba_ssm) cannot run linear on CUDA 9.0"),
        (["sm_90", "no.yaml"], "no.yaml does not exist"),
    ],
)
def test_what_cannot_be_shown_ends_in_one_sentence(words, sentence, capsys):
    assert main(["--kernels", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_an_older_gpu_is_refused(capsys):
    assert main(["--kernels", "sm_75"]) == 0
    assert "needs compute" in capsys.readouterr().out
