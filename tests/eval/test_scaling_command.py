"""`eval/run.py scaling`: from a table or a folder of runs to a report; what is wrong with a table is named by its line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import CHINCHILLA, REPEATED, chinchilla_runs, grid_design, isoflop_design, runs_of, write_csv
from eval.run import main
from eval.scaling.command import parse, read
from eval.scaling.forms import FORMS
from eval.scaling.run_folders import FolderConfig, read_runs
from eval.scaling.table import as_runs, read_table
from llm.config import to_yaml
from llm.cost import model_cost
from llm.data import Manifest
from llm.errors import ConfigError, DataError
from llm.train.config import load_config
from llm.train.distill import DistillConfig

QUICK = ["fit.starts=40", "resamples=100"]


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_csv_and_jsonl_are_the_same_table(tmp_path):
    csv = table(tmp_path / "a.csv", "Params,D,loss,note,epochs", "1e8,2e9,3.1,first,4", "", "2e8,4e9,2.9,,")
    rows = [{"n": 1e8, "tokens": 2e9, "loss": 3.1, "unique": 5e8}, {"params": "2e8", "tokens": 4e9, "loss": 2.9, "hours": None}]
    jsonl = table(tmp_path / "a.jsonl", *map(json.dumps, rows))
    first, second = (as_runs(read_table(path)) for path in (csv, jsonl))
    for name in ("params", "tokens", "loss", "flops", "unique"):
        assert getattr(first, name) == pytest.approx(getattr(second, name))
    assert first.flops == pytest.approx([6 * 2e17, 6 * 8e17])
    assert first.unique == pytest.approx([5e8, 4e9])
    assert first.line.tolist() == [f"{csv}, line 2", f"{csv}, line 4"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["params,tokens,loss", "1e8,2e9,3.1", "1e8,2e9,?"], r"line 3: loss \(\?\) is no number"),
        (["params,tokens,loss", "1e8,2e9,nan"], r"line 2: loss \(nan\) must be positive and finite"),
        (["params,tokens,loss", "1e8,-2e9,3"], r"line 2: tokens \(-2e9\) must be positive"),
        (["params,tokens,loss", "1e8,2e9"], r"line 2 holds 2 values for 3 columns"),
        (["params,token,loss", "1e8,2e9,3"], r"line 2 has no tokens; did you mean 'token'\?"),
        (["params,tokens,loss,flops", "1e8,2e9,3,1e18", "1e8,2e9,3,"], r"line 3 has no flops while other rows have"),
        (["params,tokens,loss,unique,epochs", "1e8,2e9,3,1e9,5"], r"line 2: unique \(1e\+09\) times epochs \(5\) must be tokens"),
        ([""], "is empty"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        as_runs(read_table(table(tmp_path / "a.csv", *lines)))


def test_damaged_json_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="line 2 is no JSON"):
        read_table(table(tmp_path / "a.jsonl", '{"params": 1, "tokens": 1, "loss": 1}', "{"))
    with pytest.raises(DataError, match="line 1 is a list"):
        read_table(table(tmp_path / "a.jsonl", "[1]"))
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a table"),
        (["a.csv", "forms=[chinchila]"], "did you mean 'chinchilla'"),
        (["a.csv", "level=2"], r"level \(2.0\)"),
        (["a.csv", "resamples=5"], "at least 100"),
        (["a.csv", "targets=[-1]"], "positive and finite"),
        (["a.csv", "ladder.budget=-1"], "ladder.budget"),
        (["a.csv", "ladder.step=1"], "ladder.step"),
        (["a.csv", "fit.delta=0"], "fit.delta"),
        (["a.csv", "runs.accelerators=0"], "runs.accelerators"),
        (["a.csv", "leval=0.9"], "leval"),
    ],
)
def test_settings_that_cannot_work_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        parse(words)


def test_the_command_writes_figures_pictures_and_a_plan(tmp_path, capsys):
    write_csv(chinchilla_runs(), tmp_path / "runs.csv")
    assert main(["scaling", str(tmp_path / "runs.csv"), *QUICK, "ladder.budget=1e21"]) == 0
    folder = tmp_path / "runs-scaling"
    report = json.loads((folder / "scaling.json").read_text())
    found = report["families"]["all"]
    assert report["targets"] == pytest.approx([1e22])
    assert set(found["forms"]) == {"chinchilla", "kaplan", "over_training"}
    interval = found["forms"]["chinchilla"]["profile"]["alpha"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert found["isoflop"]["N_exponent"]["value"] == pytest.approx(0.45, abs=0.03)
    assert found["forms"]["chinchilla"]["hold_out"]["held_out"] == 14
    assert "torch" in report["versions"]["packages"]
    for name in ("envelope.png", "isoflop.png", "parametric.png", "over_training.png", "plan.yaml"):
        assert (folder / name).stat().st_size > 500
    assert "| chinchilla | 0.4" in (folder / "summary.md").read_text()
    assert "Next runs" in capsys.readouterr().out


def with_flops(path: Path, family: str, runs) -> str:
    """A table with FLOPs of 40 N^0.9 D and an hour for every 1e17 of them."""
    rows = zip(runs.params, runs.tokens, runs.loss, runs.unique, 40 * runs.params**0.9 * runs.tokens, strict=True)
    lines = [f"{N},{D},{loss},{U},{C},{C / 1e17},{family}" for N, D, loss, U, C in rows]
    return str(table(path, "params,tokens,loss,unique,flops,hours,family", *lines))


def test_two_families_are_compared_at_equal_flops_and_hours(tmp_path):
    form, out = FORMS["chinchilla"], tmp_path / "out"
    tables = [
        with_flops(tmp_path / f"{seed}.csv", f"{name}/1", runs_of(form, CHINCHILLA, isoflop_design(5, 5), 0.003, seed))
        for seed, name in enumerate(("plain", "other"))
    ]
    assert main(["--out", str(out), "scaling", *tables, *QUICK, "hold_out=0", "forms=[chinchilla]"]) == 0
    report = json.loads((out / "scaling.json").read_text())
    assert report["families"]["plain/1"]["flops"]["q"] == pytest.approx(0.9)
    assert {each["unit"] for each in report["comparisons"]} == {"FLOPs", "hours"}
    assert {"families.png", "parametric-plain_1.png"} <= set(report["pictures"])
    # without repeated runs nothing is known of repetition
    assert main(["scaling", *tables, f"out={out}", *QUICK, "unique=1e9"]) == 2


def test_repeated_tokens_have_an_optimum_of_their_own(tmp_path):
    repeated = runs_of(FORMS["data_constrained"], REPEATED, grid_design(7, 6), 0.003, unique=np.tile([3e8, 1e9, 3e9], 14))
    words = [with_flops(tmp_path / "repeated.csv", "all", repeated), *QUICK, "hold_out=0", "forms=[data_constrained]"]
    assert main(["scaling", *words, "unique=1e9", "targets=[1e21]"]) == 0
    found = json.loads((tmp_path / "repeated-scaling" / "scaling.json").read_text())["families"]["all"]
    rate = found["forms"]["data_constrained"]["profile"]["R_D"]
    assert rate["low"] < 15.39 < rate["high"]
    optimum = found["from_unique_tokens"]["1e+21"]
    assert optimum["D"] > 1e9
    assert 40 * optimum["N"] ** 0.9 * optimum["D"] == pytest.approx(1e21, rel=1e-6)


def test_errors_are_a_sentence_and_a_status(tmp_path, capsys):
    assert main(["scaling", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    write_csv(chinchilla_runs(), tmp_path / "runs.csv")
    assert main(["scaling", str(tmp_path / "runs.csv"), f"out={tmp_path / 'runs.csv'}"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main(["perplexity"]) == 2
    assert "evaluates a model" in capsys.readouterr().err


def test_a_folder_of_runs_is_a_table(tmp_path, subject):
    """FLOPs are three forwards of the config's, mixers and all; runs that did not end are left out and named."""
    for name, steps, done in (("a", 20, 20), ("b", 40, 40), ("cut", 40, 20)):
        config = load_config(["configs/exp/tiny.yaml", f"name={name}", f"runs={tmp_path}", f"train.steps={steps}"])
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(config))
        last = {"tokens": done * 512, "loss": 3.5, "validation_loss": 3.2, "seconds_per_step": 9.0}
        first = {"step": done // 2, "tokens": done * 256, "loss": 4.0, "seconds_per_step": 27.0}
        (folder / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps({"step": done, **last}) + "\n")
    rows, left_out = read_runs(tmp_path, FolderConfig(accelerators=4))
    dataset = subject.manifest().root
    runs, cost = as_runs(rows), model_cost(config.model, 64)
    assert left_out == [f"{tmp_path / 'cut'} is left out: it ended at step 20 of 40"]
    assert runs.params.tolist() == [cost.parameters] * 2
    assert runs.flops == pytest.approx([3 * cost.flops * 20 * 512, 3 * cost.flops * 40 * 512])
    assert runs.loss.tolist() == [3.2, 3.2]
    # 10 steps of 27 s and 10 of 9 s, on four accelerators
    assert runs.hours[0] == pytest.approx(360 / 3600 * 4)
    assert runs.families == ["retention+attention"]
    bare, _ = read_runs(tmp_path, FolderConfig(loss="training", embeddings=False))
    tables = config.model.vocab_size * config.model.width * (1 if config.model.tie_embeddings else 2)
    assert (bare[0]["loss"], bare[0]["params"]) == (3.5, cost.parameters - tables)
    both, _ = read([str(tmp_path)], parse([str(tmp_path)])[1])
    assert len(both) == 2
    with pytest.raises(DataError, match=r"holds no finished run \(no folder in it has a config\.yaml\)"):
        read_runs(tmp_path / "a", FolderConfig())
    plain = (tmp_path / "a" / "config.yaml").read_text()
    # another context is other FLOPs, for as many tokens as the phase has; of a dataset no more is unique than it holds
    long = "{steps: 10, data: {sequence_length: 128, manifest: FOLDER}, train: {batch: 4}}".replace("FOLDER", str(dataset))
    phased = load_config(["configs/exp/tiny.yaml", "name=a", f"train.phases=[{{steps: 10}},{long}]"])
    (tmp_path / "a" / "config.yaml").write_text(to_yaml(phased))
    row, *_ = read_runs(tmp_path, FolderConfig())[0]
    per_step = phased.train.batch * 64
    assert (row["tokens"], row["params"]) == (10 * per_step + 10 * 512, cost.parameters)
    assert row["flops"] == pytest.approx(3 * (10 * per_step * cost.flops + 10 * 512 * model_cost(phased.model, 128).flops))
    held = sum(shard.tokens for shard in Manifest.load(dataset).shards if shard.split == "train")
    assert 0 < held < 10 * 512
    assert row["unique"] == 10 * per_step + held
    taught = replace(phased, train=replace(phased.train, distill=DistillConfig("nobody")))
    (tmp_path / "a" / "config.yaml").write_text(to_yaml(taught))
    assert "nobody) holds no model" in read_runs(tmp_path, FolderConfig())[1][0]
    (tmp_path / "a" / "config.yaml").write_text(plain)
    text = (tmp_path / "b" / "config.yaml").read_text()
    (tmp_path / "b" / "config.yaml").write_text(text.replace("data/stdlib", "data/others"))
    assert "several datasets (data/others, data/stdlib)" in read_runs(tmp_path, FolderConfig())[1][-1]
