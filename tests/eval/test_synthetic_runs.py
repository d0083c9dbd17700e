"""Tables of small models trained from scratch: they learn, go on where they were killed, and say what is wrong."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from eval.run import main
from eval.synthetic import points
from eval.synthetic.command import probe
from eval.synthetic.config import MIXERS_OF_PROBES, ProbeConfig
from eval.synthetic.points import Point, read_runs, run_point, work_off
from eval.synthetic.table import Cell, cells, chosen, draw, draw_by_state, markdown
from eval.synthetic.tasks import TASKS
from eval.synthetic.training import model_of, state_size, train
from llm.config import load
from llm.errors import ConfigError, DataError
from llm.mixers import MIXERS
from llm.model import Decoder

SMALL = ["steps=3", "batch=4", "held_out=8", "width=8", "hidden=0", "tests=[3,5]"]


def small(layers: str = "lstm", seed: int = 0, task: str = "parity", **changes) -> Point:
    used = {name: MIXERS_OF_PROBES[name] for name in layers.split("+")}
    return Point(task, layers, 3e-3, seed, used, {"steps": 3, "batch": 4, "width": 8, "hidden": 0, "tests": (3, 5), **changes}, 8)


def without_time(run: dict) -> dict:
    return {key: value for key, value in run.items() if key != "cpu_seconds"}


def test_an_lstm_learns_parity_and_keeps_to_it():
    point = small(width=16, steps=400, batch=32, train=(1, 2, 3, 4, 5, 6), tests=(6, 60), solved=1e-2)
    run = run_point(replace(point, learning_rate=1e-2))
    assert run["accuracy"]["60"] == 1


def test_training_is_adamw_on_the_labels():
    """Losses are those of a loop written out with PyTorch's own loss."""
    task = small(steps=4).resolved
    config = model_of(task, MIXERS_OF_PROBES, ["gru"])
    losses = train(Decoder.create(config, 7), task, 1e-2, 7)
    model, generator = Decoder.create(config, 7), torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step, found in enumerate(losses, 1):
        size = task.train[int(torch.randint(len(task.train), (), generator=generator))]
        tokens, labels = task.sample(4, size, generator)
        loss = F.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
        assert found == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # three steps of warmup are all there is before the last
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, step / 3)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", MIXERS)
def test_every_mixer_has_settings_and_a_state(kind):
    model = Decoder.create(model_of(TASKS["parity"], MIXERS_OF_PROBES, [kind]), 0)
    state = model(torch.zeros(1, 9, dtype=torch.long)).state
    size = state_size(model)
    grows = any(spec.grows for spec in model.state_spec().values())
    assert grows == (size is None)
    assert grows or size == sum(x.numel() for name, x in state.items() if not name.endswith("position"))


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    file, said = tmp_path / "runs.jsonl", []
    both = [small(seed=0), small(seed=1)]
    first = work_off(both, file, 1, 1, said.append)
    assert [r["seed"] for r in first] == [0, 1]
    # cut off in the middle of the second line, as a kill would
    text = file.read_text()
    file.write_text(text[: text.index("\n") + 50])
    again = work_off(both, file, 1, 1, said.append)
    assert list(map(without_time, again)) == list(map(without_time, first))
    assert [s for s in said if "are there" in s] == [f"{file}: {n} of 2 runs are there" for n in (0, 1)]
    assert len(read_runs(file)) == 2
    monkeypatch.setattr(points, "run_point", None)
    assert work_off(both, file, 1, 1, said.append) == again
    # another setting is another run
    assert len({point.key() for point in (*both, small(steps=4), small(task="even_pairs"), small("gru"))}) == 5


@pytest.mark.multirank
@pytest.mark.slow
def test_processes_change_no_figure(tmp_path):
    both = [small(seed=0), small("mamba2+attention")]
    one, two = (work_off(both, tmp_path / f"{n}.jsonl", n, 1, lambda _: None) for n in (1, 2))
    assert list(map(without_time, one)) == list(map(without_time, two))


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text('{"key": "a", "accuracy": {"3": 1}}\n{"key": 3\n{}\n')
    with pytest.raises(DataError, match=r"runs.jsonl, line 2 is no run"):
        read_runs(file)


def test_intervals_are_students():
    # t of 2 degrees of freedom: 4.3027 (any table)
    low, high = Cell([0.4, 0.5, 0.6], 0.5).interval
    assert (low, high) == pytest.approx((0.5 - 4.3027 * 0.1 / 3**0.5, 0.5 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert Cell([1.0, 1.0], 0.5).interval == (1, 1)
    assert Cell([0.9, 1.0, 1.0], 0.5).interval[1] == 1
    assert Cell([0.7], 0.5).interval == (0, 1)


def runs_of(right: dict[tuple[str, float, int], float]) -> list[dict]:
    """Of architecture, rate and seed; the validation loss is 1 - accuracy at size 5."""
    same = {"task": "parity", "settings": {"train": [3]}, "chance": {"3": 0.5, "5": 0.5}, "steps": 3, "parameters": 10, "state": 4}
    return [
        {
            **same,
            "architecture": name,
            "learning_rate": rate,
            "seed": seed,
            "accuracy": {"3": 1.0, "5": a},
            "validation_loss": 1 - a,
        }
        for (name, rate, seed), a in right.items()
    ]


def test_the_table_takes_the_rate_of_least_validation_loss():
    runs = runs_of({("a", 0.1, 0): 0.9, ("a", 0.1, 1): 0.7, ("a", 0.2, 1): 0.6, ("a", 0.2, 0): 0.95, ("b", 0.1, 0): 0.5})
    assert [(r["learning_rate"], r["seed"]) for r in chosen(runs, "parity", "a")] == [(0.1, 0), (0.1, 1)]
    assert cells(runs, "parity", "a")[5].mean == pytest.approx(0.8)
    text = markdown(runs)
    assert "| a | 0.800 [0.00, 1.00] |" in text
    assert "| b | 0.500 |" in text
    assert "| chance | 0.500 |" in text
    assert "| a | 0.1 | 3 | 10 | 4 | 1.000 [1.00, 1.00] | 0.800 [0.00, 1.00] |" in text
    from matplotlib.figure import Figure

    figure = Figure()
    draw(figure, runs)
    assert [len(axes.lines) for axes in figure.axes] == [7]


def test_accuracy_by_state_joins_stacks_of_the_same_kinds():
    runs = runs_of({("small", 0.1, 0): 0.5, ("large", 0.1, 0): 0.9, ("both", 0.1, 0): 0.8, ("grows", 0.1, 0): 1.0})
    kinds = {"small": ["mamba2"], "large": ["mamba2"], "both": ["mamba2", "gru"], "grows": ["attention"]}
    states = {"small": 10, "large": 20, "both": 30, "grows": None}
    for run in runs:
        pattern = kinds[run["architecture"]]
        run |= {"model": {"layers": {kind: {"mixer": {"kind": kind}} for kind in pattern}, "pattern": pattern}}
        run |= {"state": states[run["architecture"]]}
    from matplotlib.figure import Figure

    figure = Figure()
    draw_by_state(figure, runs)
    (axes,) = figure.axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}
    assert drawn == {"mamba2": [10, 20], "mamba2+gru": [30], "attention: grows": [0, 1]}


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    out = tmp_path / "probe"
    words = ["tasks=[parity,recall]", "layers=[lstm,mine+attention]", "mixers.mine.kind=mamba2", "mixers.mine.heads=2"]
    assert main(["probe", *words, *SMALL[:-1], "seeds=2", f"out={out}"]) == 0
    assert "| mine+attention |" in capsys.readouterr().out
    report = json.loads((out / "probe.json").read_text())
    assert {(c["task"], c["architecture"]) for c in report["cells"]} == {
        (task, name) for task in ("parity", "recall") for name in ("lstm", "mine+attention")
    }
    assert all(len(size["seeds"]) == 2 for cell in report["cells"] for size in cell["sizes"].values())
    assert "![accuracy](accuracy.png)" in (out / "summary.md").read_text()
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("accuracy", "state"))
    assert len(read_runs(out / "runs.jsonl")) == 8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tasks=[partiy]"], r"tasks \(partiy\) is unknown; did you mean 'parity'"),
        (["layers=[lstm+atention]"], r"layers \(lstm\+atention\) names no mixer 'atention'; did you mean 'attention'"),
        (["mixers.mine.heads=3", "layers=[mine]"], "kind"),
        (["mixers.lstm.heads=3"], r"heads \(3\) must divide"),
        (["rates=[0]"], r"rates \(0.0\) must be above 0"),
        (["seeds=0"], r"seeds \(0\) must be at least 1"),
        (["layers=[]"], r"layers is empty"),
        (["tasks=[modular_arithmetic]", "tests=[10]"], r"length \(10\) of modular_arithmetic must be odd"),
        (["step=3"], "step"),
    ],
)
def test_what_a_user_gets_wrong_is_said(words, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        probe(["layers=[lstm]", *words, f"out={tmp_path}"])
    assert not any(tmp_path.iterdir())


def test_the_hierarchys_config_names_all_of_it():
    config = load(ProbeConfig, ["configs/probe/chomsky.yaml"], {})
    others = {"modular_sums", "s5", "a5", "recall", "induction", "selective_copy", "bigrams"}
    assert set(config.tasks) == set(TASKS) - others
    assert len(config.tasks) == 15
    config.check()


def test_one_process_is_asked_for(monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    assert main(["probe"]) == 2
    assert "probe runs once, not on 2 ranks" in capsys.readouterr().err


def test_a_task_has_its_own_settings_unless_others_are_given():
    (point,) = load(ProbeConfig, ["tasks=[recall]", "layers=[retention]", "seeds=1"], {}).points()
    assert point.resolved == TASKS["recall"]
    (point,) = load(ProbeConfig, ["tasks=[recall]", "layers=[retention]", "seeds=1", "tests=[4]", "hidden=0"], {}).points()
    assert (point.resolved.tests, point.resolved.width) == ((4,), 64)
