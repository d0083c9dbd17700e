"""What a user can get wrong at a command ends in exit status 2 and one sentence, before anything is started or written."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from data_prep import run as data
from data_prep.bpe import train_bpe
from eval import run as evaluate
from launch import demo, describe, export_hf, generate, pretrain
from llm.config import to_yaml
from llm.data import load_tokenizer
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.generate import encode_prompt
from llm.model import Decoder
from llm.train import checkpoint_files as files
from llm.train.config import load_config

TINY = ["configs/exp/tiny.yaml", "data.manifest=data", "data.sequence_length=16"]
RECIPE = "out: out\nsources: {a: {read: {kind: text, root: text}, licence: none}}\ntokenizer: {vocabulary: 300}\nworkers: 1\n"
LEFT = "runs/old/checkpoints/step-9"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with a dataset, a run `runs/old` with a checkpoint of an untrained model, and files that are wrong."""
    folder = tmp_path_factory.mktemp("template")
    tokenizer = train_bpe(["to be or not to be"] * 9, vocabulary=300)
    writer = DatasetWriter(folder / "data", tokenizer, {"text": Source(1.0, "CC0-1.0")})
    for split in ("train", "validation"):
        writer.add("text", split, list(range(1, 200)), text_bytes=199)
    writer.finish()
    write_run(folder, tokenizer)
    found = {
        "list.yaml": b"- a\n",
        "empty.yaml": b"",
        "broken.yaml": b"a: [1,\n b: {",
        "number.yaml": b"include: 5\n",
        "circle.yaml": b"include: circle.yaml\n",
        "recipe.yaml": RECIPE.encode(),
        "nofiles.yaml": b"out: out\nsources: {a: {read: text, licence: none}}\n",
        "mine/thesis.txt": b"years of work",
        "text/a.txt": b"to be or not to be\n" * 9,
        "binary/a.bin": bytes(range(256)),
        "binary/b": b"",
        "wrong.jsonl": b'{"text": "a"}\n{"txt": "b"}\n',
        "suite.yaml": b"tasks: {perplexity: 5}\n",
    }
    for name, inside in found.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(inside)
    (folder / "hollow").mkdir()
    return folder


@pytest.fixture(autouse=True)
def folder(template, tmp_path, monkeypatch) -> Path:
    """A copy of the template as working folder; a process group that cannot be started."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def write_run(folder: Path, tokenizer: bytes) -> None:
    config = load_config([*TINY, "name=old", "model.vocab_size=300"])
    checkpoint = folder / LEFT
    (checkpoint / files.WEIGHTS).mkdir(parents=True)
    for path in (folder / "runs/old/config.yaml", checkpoint / files.CONFIG):
        path.write_text(to_yaml(config))
    (checkpoint / files.TOKENIZER).write_bytes(tokenizer)
    (checkpoint / files.PROGRESS).write_text(json.dumps({"step": 9, "tokens": 99, "data": {"consumed": 0}, "ranks": 1}))
    save_file(dict(Decoder.create(config.model, seed=0).state_dict()), checkpoint / files.weights_of(0))
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    (checkpoint / files.FILES).write_text(json.dumps(files.seal(checkpoint, names)))


def content(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, and the files' bytes, but for the figures of a run."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != "run.json"}


def refused(main, words: list[str], sentence: str, folder: Path, capsys) -> None:
    """`main(words)` ends in 2 with one line that holds `sentence`, and leaves every byte below `folder` as it was."""
    before = content(folder)
    assert main(words) == 2
    # a progress bar may come first
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert sentence in said
    assert content(folder) == before


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        (pretrain.main, ["empty.yaml"], "name is not set"),
        (pretrain.main, ["list.yaml"], "holds a list"),
        (pretrain.main, ["broken.yaml"], "is no valid YAML"),
        (pretrain.main, ["number.yaml"], "include (5) must name files"),
        (pretrain.main, ["circle.yaml"], "break the circle"),
        (pretrain.main, ["nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (pretrain.main, ["data"], "neither a run folder nor a checkpoint"),
        (pretrain.main, [LEFT], "is a checkpoint; resume its run"),
        (pretrain.main, ["runs/old", "train.batch=99"], "resumes with its own config"),
        (pretrain.main, [*TINY, "train.stepz=3"], "Did you mean: 'steps'"),
        (pretrain.main, [*TINY, "=3"], "names no key"),
        (pretrain.main, [*TINY, "train.steps=[1"], "is not an override"),
        (pretrain.main, [*TINY, "train.steps=many"], "train.steps: Value 'many'"),
        (pretrain.main, [*TINY, "model.layers.r.mixer.kind=retenshun"], "did you mean 'retention'"),
        (pretrain.main, [*TINY, "model.layers=[r]"], "model.layers (['r']) is a list where keys and values belong"),
        (pretrain.main, [*TINY, "model.pattern=r"], "model.pattern must be a list"),
        (pretrain.main, [*TINY, "model.pattern=[r,q]"], "unknown layer 'q'"),
        (pretrain.main, [*TINY, "model.layers.r.mixer.heads=3"], "heads (3) must divide model.width (32)"),
        (pretrain.main, [*TINY, "model.vocab_size=100"], "set model.vocab_size=266"),
        (pretrain.main, [*TINY, "train.batch=7", "train.micro_batch=8"], "use train.micro_batch=7"),
        (pretrain.main, [*TINY, "parallel.zero=4"], "must be one of 0, 1, 2, 3"),
        (pretrain.main, [*TINY, "train.precision=bf16", "parallel.zero=0"], "set parallel.zero=1"),
        (pretrain.main, [*TINY, "train.schedule.warmup=99"], "less than train.steps"),
        (pretrain.main, [*TINY, "train.optimizer.lr=nan"], "train.optimizer.lr (nan)"),
        (pretrain.main, [*TINY, "train.clip=inf"], "train.clip (inf) must be finite and positive"),
        (pretrain.main, [*TINY, "data.sequence_length=5000"], "data.sequence_length (5000)"),
        (pretrain.main, [*TINY, "data.manifest=nowhere"], "manifest nowhere does not exist"),
        (pretrain.main, [*TINY, "name=old", "model.vocab_size=300", "model.width=64"], "start a new one with name=ANOTHER"),
        (pretrain.main, [*TINY, "runs=empty.yaml"], "empty.yaml is a file; choose another"),
        (pretrain.main, [*TINY, "runs=data", "name=manifest.json"], "manifest.json is a file; choose another"),
        (describe.main, ["configs/exp/tiny.yaml", "model.depth=0"], "model.depth (0)"),
        (describe.main, ["configs/exp/tiny.yaml", "data.sequence_length=-4"], "data.sequence_length (-4)"),
        (
            describe.main,
            ["configs/exp/tiny.yaml", "parallel.sequence=3"],
            "data.sequence_length (64) must be a multiple of parallel.sequence (3); use 63 or 66",
        ),
        (describe.main, ["configs/exp/tiny.yaml", "ranks=0"], "ranks (0) is how many processes train"),
        (
            describe.main,
            ["configs/exp/tiny.yaml", "parallel.sequence=4", "ranks=6"],
            "parallel.sequence (4) must divide the ranks (6); use one of [1, 2, 3, 6]",
        ),
        (describe.main, ["runs/old"], "runs/old is a folder"),
        (evaluate.main, ["--model", "nowhere", "perplexity"], "model (nowhere) does not exist"),
        (evaluate.main, ["--model", "runs/old", "perplexty"], "did you mean 'perplexity'"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "max_token=5"], "Did you mean one of: 'max_tokens'"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "split=test"], "split 'test'"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "text=nowhere"], "text (nowhere) does not exist"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "text=binary"], "is no text in UTF-8"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "text=binary/b"], "holds no text to score"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "text=wrong.jsonl"], "wrong.jsonl, line 2"),
        (evaluate.main, ["--model", "runs/old", "--model", "runs/old", "perplexity"], "model (runs/old) is given twice"),
        (evaluate.main, ["--model", "mine", "perplexity"], "holds no checkpoint"),
        (evaluate.main, ["--model", "text", "perplexity,bigram", "lane=3"], "setting (lane=3) is of none of perplexity, bigram"),
        (evaluate.main, ["perplexity"], "name it with --model PATH"),
        (evaluate.main, ["number.yaml"], "include (5) must name files"),
        (evaluate.main, ["suite.yaml"], "tasks.perplexity (5) must hold settings"),
        (evaluate.main, ["max_tokens=5"], "no task is named"),
        (evaluate.main, ["--model", "runs/old", "perplexity", "seed=-1"], "seed (-1)"),
        (evaluate.main, ["--model", "runs/old", "--device", "toaster", "perplexity"], "device (toaster) is not on this machine"),
        (generate.main, ["hollow", "--prompt", "x"], "holds no checkpoint"),
        (generate.main, ["runs/old", "--temperature", "nan"], "temperature (nan)"),
        (generate.main, ["runs/old", "--seed", str(1 << 70)], "seed"),
        (generate.main, ["runs/old", "--prompt", "a\udcff"], "is not valid UTF-8"),
        (generate.main, ["runs/old", "--device", "toaster"], "device (toaster) is not on this machine"),
        (export_hf.main, ["nowhere"], "holds no checkpoint"),
        (export_hf.main, ["runs/old", "mine"], "exists already"),
        (export_hf.main, ["runs/old", "mine", "--replace"], "is no exported model, so --replace does not delete it"),
        (export_hf.main, ["runs/old", "runs/old", "--replace"], "is no exported model, so --replace does not delete it"),
        (export_hf.main, ["runs/old", "empty.yaml/out"], "empty.yaml is a file"),
        (data.main, ["prepare", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (data.main, ["prepare", "recipe.yaml", "validation=2"], "validation"),
        (data.main, ["prepare", "recipe.yaml", "sources.a.weight=inf"], "sources.a.weight (inf)"),
        (data.main, ["prepare", "recipe.yaml", "sources.a.read.root=hollow"], "files (*.txt, *.md) match nothing in hollow"),
        (data.main, ["prepare", "recipe.yaml", "sources.a.read.root=binary", "sources.a.read.files=['*']"], "hold no text at all"),
        (data.main, ["prepare", "nofiles.yaml"], "sources.a.read.root (none) must be given"),
        (data.main, ["prepare", "recipe.yaml", "out=mine"], "holds other files (thesis.txt)"),
        (data.main, ["prepare", "recipe.yaml", "out=empty.yaml"], "empty.yaml is a file"),
        (data.main, ["prepare", "recipe.yaml", "out=data"], "add --replace"),
        (
            data.main,
            ["prepare", "recipe.yaml", "out=data", "sources.a.read.root=binary", "sources.a.read.files=['*']", "--replace"],
            "hold no text at all",
        ),
        (
            data.main,
            ["prepare", "recipe.yaml", "out=data", "tokenizer.path=list.yaml", "--replace"],
            "list.yaml is no tokenizer.json",
        ),
        (data.main, ["read", "recipe.yaml", "b"], "source b is none of the recipe"),
        (data.main, ["verify", "nowhere"], "nowhere"),
        (data.main, ["show", "data", "-1"], "n (-1)"),
    ],
)
def test_one_sentence(main, words, sentence, folder, capsys):
    refused(main, words, sentence, folder, capsys)


def test_a_batch_that_ranks_cannot_share(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "9")
    refused(pretrain.main, TINY, "train.batch (8) must hold a sequence for each of the ranks (9)", folder, capsys)


def test_damaged_datasets_are_named(folder, capsys):
    shard, tokenizer, manifest = (
        next((folder / "data").glob("*.tar")),
        folder / "data/tokenizer.json",
        folder / "data/manifest.json",
    )
    for path in (shard, tokenizer, manifest):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        refused(pretrain.main, TINY, path.name, folder, capsys)
        path.unlink()
        refused(pretrain.main, TINY, path.name, folder, capsys)
        path.write_bytes(whole)


def test_a_flipped_byte_of_a_shard_is_named(folder, capsys):
    member = json.loads((folder / "data/manifest.json").read_text())["shards"][1]["members"]["tokens.bin"]
    shard = folder / "data/shard-00001.tar"
    flip(shard, member["offset"])
    refused(data.main, ["verify", "data"], "block 0 of the tokens (document 0) is corrupt", folder, capsys)
    refused(evaluate.main, ["--model", "runs/old", "perplexity"], "shard-00001.tar", folder, capsys)


def flip(path: Path, at: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "seal of another form", "seal without names", "half a seal"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(harm, folder, capsys):
    newer = folder / "runs/old/checkpoints/step-10"
    shutil.copytree(folder / LEFT, newer)
    seal, weights = newer / files.FILES, newer / files.weights_of(0)
    match harm:
        case "flip":
            flip(weights, 999)
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "remove":
            weights.unlink()
        case "seal of another form":
            seal.write_text('{"model.safetensors": 3}')
        case "seal without names":
            seal.write_text('{"other": [1, "2"]}')
        case "half a seal":
            seal.write_text(seal.read_text()[:40])
    refused(generate.main, [str(newer)], "step-10 is not whole", folder, capsys)
    assert generate.main(["runs/old", "--prompt", "to be", "--tokens", "2"]) == 0
    (folder / LEFT / files.weights_of(0)).unlink()
    refused(generate.main, ["runs/old"], "no checkpoint of", folder, capsys)


def test_a_document_token_written_in_a_prompt_is_text(folder, capsys):
    tokenizer = load_tokenizer(folder / LEFT / files.TOKENIZER)
    first, *rest = encode_prompt(tokenizer, "a<|endoftext|>b", 300)
    assert first not in rest
    assert generate.main(["runs/old", "--prompt", "a<|endoftext|>b", "--tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("a<|endoftext|>b")


def test_a_preparation_that_was_cut_short_is_finished(folder):
    assert data.main(["prepare", "recipe.yaml"]) == 0
    whole = content(folder / "out")
    (folder / "out/manifest.json").unlink()
    (folder / "out/CARD.md").unlink()
    assert data.main(["prepare", "recipe.yaml"]) == 0
    assert content(folder / "out") == whole


@pytest.mark.parametrize("steps", ["many", "1", "-3", "2.5"])
def test_demo_steps_are_a_number(steps, folder, monkeypatch, capsys):
    monkeypatch.setenv("BRAID_DEMO_STEPS", steps)
    refused(demo.main, [], f"BRAID_DEMO_STEPS ({steps})", folder, capsys)
