"""What a user can get wrong at a command ends in exit status 2 and one sentence, before anything is started or written."""

from pathlib import Path

import pytest

from data_prep import run as data
from data_prep.bpe import train_bpe
from eval import run as evaluate
from launch import demo, describe, export_hf, generate, pretrain
from llm.data.manifest import Source
from llm.data.write import DatasetWriter

TINY = ["configs/exp/tiny.yaml", "data.manifest=data", "data.sequence_length=16"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with a dataset."""
    writer = DatasetWriter(
        tmp_path / "data", train_bpe(["to be or not to be"] * 9, vocabulary=300), {"text": Source(1.0, "CC0-1.0")}
    )
    for split in ("train", "validation"):
        writer.add("text", split, list(range(1, 200)), text_bytes=199)
    writer.finish()
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "recipe.yaml").write_text("out: out\nsources: {a: {kind: files, licence: none}}\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        (pretrain.main, ["empty.yaml"], "name is not set"),
        (pretrain.main, ["list.yaml"], "holds a list"),
        (pretrain.main, ["nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (pretrain.main, ["data"], "neither a run folder nor a checkpoint"),
        (pretrain.main, [*TINY, "train.stepz=3"], "Did you mean: 'steps'"),
        (pretrain.main, [*TINY, "model.layers.r.mixer.kind=retenshun"], "did you mean 'retention'"),
        (pretrain.main, [*TINY, "model.pattern=[r,q]"], "unknown layer 'q'"),
        (pretrain.main, [*TINY, "model.layers.r.mixer.heads=3"], "heads (3) must divide model.width (32)"),
        (pretrain.main, [*TINY, "model.vocab_size=100"], "set model.vocab_size=266"),
        (pretrain.main, [*TINY, "train.batch=7", "train.micro_batch=2"], "use train.batch=6 or 8"),
        (pretrain.main, [*TINY, "parallel.zero=4"], "must be one of 0, 1, 2, 3"),
        (pretrain.main, [*TINY, "train.precision=bf16", "parallel.zero=0"], "set parallel.zero=1"),
        (pretrain.main, [*TINY, "train.schedule.warmup=99"], "less than train.steps"),
        (pretrain.main, [*TINY, "data.sequence_length=5000"], "data.sequence_length (5000)"),
        (pretrain.main, [*TINY, "data.manifest=nowhere"], "manifest nowhere does not exist"),
        (describe.main, ["configs/exp/tiny.yaml", "model.depth=0"], "model.depth (0)"),
        (evaluate.main, ["--run", "nowhere", "perplexity"], "holds no checkpoint"),
        (evaluate.main, ["--run", "nowhere", "perplexty"], "did you mean 'perplexity'"),
        (generate.main, ["nowhere", "--prompt", "x"], "holds no checkpoint"),
        (export_hf.main, ["nowhere"], "holds no checkpoint"),
        (data.main, ["prepare", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (data.main, ["prepare", "recipe.yaml", "validation=2"], "validation"),
        (data.main, ["verify", "nowhere"], "nowhere"),
    ],
)
def test_one_sentence(main, words, sentence, folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert sorted(folder.rglob("*")) == before


def test_damaged_shards_are_named(folder, capsys):
    shard = next((folder / "data").glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-600])
    assert pretrain.main(TINY) == 2
    assert shard.name in capsys.readouterr().err
    shard.unlink()
    assert pretrain.main(TINY) == 2
    assert shard.name in capsys.readouterr().err
    shard.write_bytes(whole)
    (folder / "data" / "tokenizer.json").write_text("{}")
    assert pretrain.main(TINY) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("steps", ["many", "1", "-3"])
def test_demo_steps_are_a_number(steps, monkeypatch, capsys):
    monkeypatch.setenv("BRAID_DEMO_STEPS", steps)
    assert demo.main([]) == 2
    assert f"BRAID_DEMO_STEPS ({steps})" in capsys.readouterr().err
