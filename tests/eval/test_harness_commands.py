"""lm-evaluation-harness from the command line: its own with our class, its own on an export, and ours on one and two ranks."""

import json
import random
import sys
from pathlib import Path

import pytest

from eval.harness.task import LOCAL
from llm.config import configs_root
from llm.testing import free_port
from tests.checkout import ROOT, environment, run
from tests.eval.writing import export, small_config, write_run

pytestmark = [pytest.mark.slow, pytest.mark.multirank, pytest.mark.timeout(600)]

WORDS = ["a", "bright", "cold", "day", "in", "april", "and", "the", "clocks", "were"]
TASKS = "minimal_pairs,rolling_text"


@pytest.fixture(scope="module")
def folder(subject, tmp_path_factory) -> Path:
    """A run, its export, data, and the local tasks that read it."""
    folder = tmp_path_factory.mktemp("commands")
    tokenizer = subject.manifest().tokenizer_path
    write_run(folder / "small", small_config(subject.model.decoder.config), tokenizer.read_bytes())
    from llm.train.load import load_model

    export(load_model(folder / "small")[0], tokenizer, folder / "exported", 16)
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(3))

    pairs = [{"sentence_good": sentence(), "sentence_bad": sentence()} for _ in range(41)]
    (folder / "minimal_pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": " ".join([sentence()] * n)}) + "\n" for n in (1, 5, 9)))
    (folder / "tasks").mkdir()
    for task in TASKS.split(","):
        (folder / "tasks" / f"{task}.yaml").write_text((configs_root() / LOCAL / f"{task}.yaml").read_text())
    return folder


def harness(folder: Path, out: str, *words: str) -> dict[str, dict[str, float]]:
    """What a command of the harness writes, without standard errors of resampling."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    tasks = ["--include_path", "tasks", "--tasks", TASKS, "--device", "cpu", "--batch_size", "4", "--output_path", out]
    done = run([*words, *tasks], folder, 300, environment(**offline))
    assert done.returncode == 0, done.stdout[-3000:]
    (written,) = (folder / out).rglob("results*.json")
    return values(json.loads(written.read_text())["results"])


def values(results: dict) -> dict[str, dict[str, float]]:
    return {
        task: {key: value for key, value in found.items() if isinstance(value, float) and "stderr" not in key}
        for task, found in results.items()
    }


def test_three_commands_say_the_same(folder):
    ours = harness(folder, "ours", sys.executable, "-m", "eval.harness", "run", "--model", "braid", "--model_args", "path=small")
    arguments = "pretrained=exported,trust_remote_code=True,add_bos_token=False,dtype=float32,max_length=16"
    theirs = harness(folder, "theirs", sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments)
    assert ours["rolling_text"] == pytest.approx(theirs["rolling_text"], rel=1e-6)
    # a pair's log-likelihoods are rarely equal, and BOS stands before each alike
    assert ours["minimal_pairs"] == theirs["minimal_pairs"]
    for ranks in (1, 2):
        launch = ["torchrun", "--nproc-per-node", str(ranks), "--master-port", str(free_port()), str(ROOT / "eval" / "run.py")]
        words = [
            "--model",
            "small",
            "--device",
            "cpu",
            "--out",
            f"out{ranks}",
            "lm_eval",
            f"lm_eval.tasks={TASKS}",
            "include=tasks",
        ]
        done = run([*launch, *words], folder, 300, environment(HF_HUB_OFFLINE="1", HF_HOME=str(folder / "home")))
        assert done.returncode == 0, done.stdout[-3000:]
        report = json.loads((folder / f"out{ranks}" / "small" / "eval-lm_eval.json").read_text())
        for task, metrics in ours.items():
            for key, value in metrics.items():
                assert report["figures"][f"{task} {key.partition(',')[0]}"]["value"] == pytest.approx(value, rel=1e-6)
        assert report["figures"]["minimal_pairs acc"]["n"] == 41
        assert report["ranks"] == ranks
