"""The GPU's benchmark: it runs on a CPU, says what it cannot measure, and names what is below a target."""

import pytest
import torch

from benchmarks.gpu import FULL, TINY, Row, main, ratio_of, shortfalls
from benchmarks.gpu_sides import KINDS, THEIRS, braid, made, mixer_of
from llm.cost import model_cost
from tests.peers import peers


@pytest.mark.filterwarnings("ignore")
def test_it_runs_on_a_cpu(capsys):
    words = ["--device", "cpu", "--tiny", "--rounds", "1", "--tokens", "32", "--kinds", "retention", "mamba2", "--check"]
    assert main([*words, "--only", "layers"]) == 0
    shown = capsys.readouterr().out
    assert "runs on CUDA devices" in shown
    assert "retention" in shown
    assert main([*words, "--minutes", "0"]) == 0
    assert "no time left" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "has no CUDA device" in capsys.readouterr().err


def test_what_is_below_a_target_is_named():
    rows = [Row("mamba", "braid", 4096, 1.2), Row("mamba", "mamba-ssm", 4096, 1.0), Row("1.3B", "braid", 4096, 1.0, mfu=0.3)]
    assert ratio_of(rows[0], rows) == pytest.approx(1 / 1.2)
    assert [line.split(":")[0] for line in shortfalls(rows)] == ["mamba at 4096 tokens", "1.3B at 4096 tokens"]
    assert shortfalls([Row("mamba", "braid", 4096, 1.0), Row("mamba", "mamba-ssm", 4096, why="out of memory")]) == []


@pytest.mark.parametrize(("name", "parameters"), [("350M", 350e6), ("1.3B", 1.3e9)])
def test_braids_are_as_large_as_they_are_called(name, parameters):
    found = model_cost(braid(*FULL.braids[name], FULL), 4096).parameters
    assert found == pytest.approx(parameters, rel=0.07)


def test_every_kind_has_a_packages_layer_beside_it():
    assert set(THEIRS) == set(KINDS)


@pytest.mark.filterwarnings("ignore")
def test_titans_beside_ours_is_of_our_width():
    """It alone needs no GPU."""
    x = torch.randn(1, 130, TINY.width)
    y, _ = made("titans", TINY, peers.load)(x)
    assert y.shape == x.shape


@pytest.mark.parametrize("kind", ["mlstm", "slstm"])
def test_xlstms_layers_are_of_our_sizes(kind):
    _, entry, settings = THEIRS[kind]
    module, _, name = entry.partition(":")
    assert name in vars(peers.load(module))
    config = settings(TINY, peers.load)["config"]
    assert (config.embedding_dim, config.num_heads) == (TINY.width, mixer_of(kind, TINY.heads)["heads"])
