"""A sweep without a cluster: what fails does not stop the others, the table shows it, `resume` runs it alone again."""

import csv
import json
import sys
from pathlib import Path

import pytest

from eval.scaling.run_folders import FolderConfig, read_runs
from eval.scaling.table import read_table
from launch import sweep
from llm.config import to_yaml
from llm.train.config import load_config

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(120)]
# In the place of training: it writes what a run does, and fails where seed is 2 until it is mended.
TRAIN = """
import json, sys, time
from pathlib import Path
here, words = Path(sys.argv[1]), sys.argv[3:]
with (here / "started").open("a") as file:
    print(*words, file=file)
given = dict(word.split("=") for word in words if "=" in word)
run = Path(given["runs"]) / given["name"] if given else Path(words[0])
run.mkdir(parents=True, exist_ok=True)
bad = run.name == "width16-seed2" and not (here / "mended").exists()
(run / "config.yaml").write_text((here / "config.yaml").read_text())
records = [{"step": 4, "loss": 2.5, "tokens": 99, "seconds_per_step": 9.0, "validation_loss": 2.25}]
(run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records[bad:]))
outcome = {"status": 77 if bad else 0, "step": 4, "sentence": "hung | badly" if bad else "step 4 of 4", "folder": str(run)}
(run / "outcome.json").write_text(json.dumps(outcome))
sys.exit(outcome["status"])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAID_SITE", raising=False)
    words = ["configs/exp/tiny.yaml", "train.steps=4", "data.manifest=nowhere"]
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(words)))
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "sweep.yaml").write_text(
        f"name: sweep\nwords: [configs/exp/tiny.yaml]\nlauncher: [{sys.executable}, train.py, {tmp_path}]\n"
        "grid: {model.width: [16, 32], seed: [1, 2, 3]}\n"
    )
    return tmp_path


def started(folder: Path) -> list[str]:
    return (folder / "started").read_text().splitlines()


def test_one_fails_the_others_finish_and_resume_runs_it_alone(folder: Path, capfd: pytest.CaptureFixture):
    assert sweep.main(["sweep.yaml", "--dry-run"]) == 0
    assert not (folder / "runs").exists()
    assert sweep.main(["sweep.yaml"]) == 1
    assert "runs/sweep: 5 done, 1 failed" in capfd.readouterr().out.replace("\n", " ")
    assert len(started(folder)) == 6
    run = folder / "runs" / "sweep"
    rows = {row["run"]: row for row in csv.DictReader((run / "table.csv").read_text().splitlines())}
    assert [row["state"] for row in rows.values()].count("done") == 5
    assert (rows["width16-seed2"]["state"], rows["width16-seed2"]["said"]) == ("failed", "hung | badly")
    assert (rows["width32-seed1"]["width"], rows["width32-seed1"]["validation_loss"]) == ("32", "2.25")
    assert "| failed |" in (run / "summary.md").read_text()
    assert len(read_table(run / "table.jsonl")) == 5
    # the others are not touched again
    (folder / "mended").touch()
    assert sweep.main(["resume", "runs/sweep"]) == 0
    assert started(folder)[6:] == ["runs/sweep/width16-seed2"]
    assert sweep.main(["resume", "runs/sweep"]) == 0
    assert len(started(folder)) == 7
    table = [json.loads(line) for line in (run / "table.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in table] == [row["loss"] for row in read_runs(run, FolderConfig())[0]] == [2.25] * 6


def test_words_for_a_cluster_need_one(folder: Path, capsys: pytest.CaptureFixture):
    assert sweep.main(["sweep.yaml", "slurm.nodes=2"]) == 2
    assert "slurm.nodes=2 has no effect without --site SITE" in capsys.readouterr().err
    assert sweep.main(["status", "runs/none"]) == 2
    assert "is no sweep" in capsys.readouterr().err
