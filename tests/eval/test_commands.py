"""From a run folder to reports, a text and a refusal, by the commands themselves, from a folder that is not the checkout."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data_prep.bpe import train_bpe
from eval import report
from eval.find import Reading, find_model
from eval.run import main as evaluate
from eval.subject import Subject
from launch import describe, generate
from llm.cost import model_cost
from llm.errors import DataError
from llm.model import Decoder
from llm.ops import kernels
from llm.train import checkpoint_files as files
from llm.train.world import World
from tests.eval.writing import BATCH, STEPS, WINDOW, small_config, write_run


@pytest.fixture
def run(subject, tmp_path, monkeypatch) -> Path:
    """A run folder with one checkpoint of an untrained model, its dataset named relative to the folder that holds `runs`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(subject.manifest().root)
    tokenizer = subject.manifest().tokenizer_path.read_bytes()
    return write_run(tmp_path / "runs" / "small", small_config(subject.model.decoder.config), tokenizer)


def loaded(path: Path) -> Subject:
    return find_model(str(path)).load(World(0, 1, torch.device("cpu")), Reading(torch.device("cpu")))


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "report" / f"eval-{name}.json").read_text())


def test_reports_hold_what_repeats_them(run, tmp_path, monkeypatch, capsys, subject):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert evaluate(["--model", str(run), "--device", "cpu", "perplexity,bigram", "max_tokens=150", "perplexity.lanes=2"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    model, baseline = (read(run, task) for task in ("perplexity", "bigram"))
    assert model["details"]["text"] == baseline["details"]["text"]
    assert baseline["details"]["fitted_on"]["of"] == STEPS * BATCH
    assert model["details"]["text"]["manifest"] == subject.manifest().hash
    assert (model["subject"]["step"], model["settings"]["max_tokens"], model["settings"]["lanes"]) == (STEPS, 150, 2)
    assert "torch" in model["versions"]["packages"]
    summary = (run / "report" / "eval-summary.md").read_text()
    assert "| perplexity | bits per byte |" in summary
    assert "| bigram | bits per byte |" in summary
    assert (run / "report" / "eval-perplexity.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again(run, capsys, monkeypatch):
    monkeypatch.setattr(report, "write_pictures", lambda *_: [])
    words = ["--model", str(run), "--device", "cpu", "perplexity"]

    def seconds(*more: str) -> float:
        assert evaluate([*words, *more]) == 0
        return read(run, "perplexity")["seconds"]

    first = seconds("max_tokens=90")
    assert seconds("max_tokens=90") == first
    assert "done already" in capsys.readouterr().out
    assert (
        len({first, seconds("max_tokens=90", "--again"), seconds("max_tokens=91"), seconds("max_tokens=91", "--dtype", "float64")})
        == 4
    )
    text = run.parent / "a.txt"
    text.write_text("a bright cold day\n")
    one = seconds(f"text={text}")
    assert seconds(f"text={text}") == one
    text.write_text("a cold bright day\n")
    assert seconds(f"text={text}") != one


def test_a_log_file_is_told_of_progress_once_a_minute(subject, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with subject.progress("batches", 9000) as advance:
        for _ in range(9):
            now[0] += 25
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [f"test: batches {n},000/9,000" for n in (3, 6, 9)]


def test_sources_have_a_table_of_their_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_pictures", lambda *_: [])
    lines = [("prose", "a bright cold day"), ("code", "clocks"), ("code", "were striking")]
    for source, text in lines:
        (tmp_path / "texts" / source).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / source / f"{len(text)}.txt").write_text(text)
    assert evaluate(["--model", str(run), "--device", "cpu", "perplexity", f"text={tmp_path / 'texts'}"]) == 0
    found = read(run, "perplexity")["details"]["by_source"]
    assert {name: of["documents"] for name, of in found.items()} == {"code": 2, "prose": 1}
    table = (run / "report" / "eval-summary.md").read_text()
    assert "| perplexity | code | small | 2 |" in table
    assert "| perplexity | prose | small | 1 |" in table


def test_models_side_by_side(run, tmp_path, capsys, monkeypatch):
    """A run, its checkpoint and another way to read it: one table, one picture, a report each."""
    checkpoint = run / "checkpoints" / files.name_of(STEPS)
    suite = tmp_path / "suite.yaml"
    suite.write_text("tasks: {rolling: {task: perplexity, rule: harness}}\n")
    assert evaluate(["--model", str(run), "--model", str(checkpoint), "--device", "cpu", str(suite), "max_tokens=90"]) == 0
    one, other = read(run, "rolling"), json.loads((run / "report" / "step-3" / "eval-rolling.json").read_text())
    assert one["figures"] == other["figures"]
    assert (one["settings"]["rule"], one["task"]) == ("harness", "perplexity")
    table = (tmp_path / "report" / "eval-summary.md").read_text()
    assert "| evaluation | figure | n | small | small-step-3 |" in table
    assert (tmp_path / "report" / "eval-rolling.png").is_file()


def test_token_by_token_is_the_same_to_rounding(run, monkeypatch):
    monkeypatch.setattr(report, "write_pictures", lambda *_: [])
    figures, read_at_once, right = [], [], Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, x, *a, **k: read_at_once.append(x.shape[1]) or right(self, x, *a, **k))
    for mode in ("parallel", "recurrent"):
        words = ["--model", str(run), "--mode", mode, "--dtype", "float64", "--device", "cpu", "--out", str(run / mode)]
        assert evaluate([*words, "perplexity", "max_tokens=90"]) == 0
        found = json.loads((run / mode / "small" / "eval-perplexity.json").read_text())
        assert found["subject"]["mode"] == mode
        figures.append(found["figures"]["nats_per_token"]["value"])
        assert (set(read_at_once) == {1}) == (mode == "recurrent")
        read_at_once.clear()
    assert figures[0] == pytest.approx(figures[1], rel=1e-10)


def test_a_run_of_another_tokenizer_is_refused(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(subject.manifest().root)
    other = train_bpe(["another text altogether"] * 9, vocabulary=270)
    run = write_run(tmp_path / "runs" / "small", small_config(subject.model.decoder.config), other)
    with pytest.raises(DataError, match="is not that of data"):
        loaded(run).manifest()


def test_generated_text_begins_with_the_prompt(run, capsys):
    words = [str(run), "--device", "cpu", "--prompt", "a bright cold", "--tokens", "5"]
    assert generate.main([*words, "--seed", "1"]) == generate.main([*words, "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a bright cold")
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def test_kernels_are_those_of_the_command_or_the_run(run, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_pictures", lambda *_: [])
    words = ["--model", str(run), "--device", "cpu", "perplexity", "max_tokens=90"]
    for more, asked in ((["kernels.linear=torch"], "torch"), ([], "auto")):
        assert evaluate([*words, *more]) == 0
        assert (kernels.asked("linear"), read(run, "perplexity")["subject"].get("kernels", "")) == (asked, "".join(more))
        assert generate.main([str(run), "--device", "cpu", "--tokens", "1", *more, "--prompt", "a"]) == 0
        assert kernels.asked("linear") == asked
    assert evaluate([*words, "kernels.linear=fla"]) == 2
    assert "kernels.linear (fla) runs on CUDA devices" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate.main([str(run), "--prompt", "a", "bright day"])
    assert "unrecognized arguments: bright day" in capsys.readouterr().err


def test_described_layers_add_up(run):
    config = small_config(loaded(run).model.decoder.config)
    rows = list(zip(*(column._cells for column in describe.table(config).columns), strict=True))
    for column, whole in enumerate(asdict(model_cost(config.model, WINDOW)).values(), start=2):
        values = [int(str(row[column]).replace(",", "")) for row in rows]
        assert values[-1] == sum(values[:-1]) == whole


def test_needles_and_looks_inside_are_reported_and_drawn(run):
    words = ["needle", "needle_tokens", "ruler", "verbatim", "attention_maps", "timescales", "logit_lens"]
    small = ["samples=2", "haystack=noise", "needle.lengths=[500]", "needle_tokens.lengths=[40]", "needle_tokens.depths=2"]
    more = ["ruler.lengths=[700]", "ruler.kinds=[single_1]", "verbatim.delays=[3]", "tokens=20", "needle.candidates=3"]
    assert evaluate(["--model", str(run), "--device", "cpu", ",".join(words), *small, *more]) == 0
    for name in words:
        assert read(run, name)["figures"]
        assert (run / "report" / f"eval-{name}.png").stat().st_size > 5000
    assert read(run, "needle_tokens")["details"]["cells"][0]["first"]["interval"][1] > 0
