"""A table of architectures and tasks from their runs: accuracies over seeds with 95 % intervals, and pictures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

from eval.synthetic.points import BETWEEN_LAYERS, Run
from eval.synthetic.tasks import TASKS

LEVEL = 0.95


@dataclass(frozen=True)
class Cell:
    """Accuracies of one architecture on one task at one size. values: of each seed. chance: of the most frequent answer."""

    values: list[float]
    chance: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """In which the mean over all seeds lies with 95 % (Student's t), within 0 and 1; everything where one seed says nothing."""
        n = len(self.values)
        if n == 1:
            return 0.0, 1.0
        half = student.ppf((1 + LEVEL) / 2, n - 1) * statistics.stdev(self.values) / n**0.5
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    def said(self) -> str:
        low, high = self.interval
        return f"{self.mean:.3f} [{low:.2f}, {high:.2f}]" if len(self.values) > 1 else f"{self.mean:.3f}"


def chosen(runs: Sequence[Run], task: str, architecture: str) -> list[Run]:
    """The runs, one per seed, of the architecture's best learning rate: the least validation loss at sizes that were trained."""
    ours = [r for r in runs if (r["task"], r["architecture"]) == (task, architecture)]
    by_rate = {rate: [r for r in ours if r["learning_rate"] == rate] for rate in {r["learning_rate"] for r in ours}}
    best = min(by_rate.values(), key=lambda some: statistics.mean(r["validation_loss"] for r in some))
    return sorted(best, key=lambda r: r["seed"])


def tasks_of(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(r["task"] for r in runs))


def architectures_of(runs: Sequence[Run], task: str | None = None) -> list[str]:
    return list(dict.fromkeys(r["architecture"] for r in runs if task in (None, r["task"])))


def cells(runs: Sequence[Run], task: str, architecture: str) -> dict[int, Cell]:
    """By size, at the chosen learning rate."""
    best = chosen(runs, task, architecture)
    return {int(size): Cell([r["accuracy"][size] for r in best], best[0]["chance"][size]) for size in best[0]["accuracy"]}


def trained_to(runs: Sequence[Run], task: str) -> int:
    return max(next(r for r in runs if r["task"] == task)["settings"]["train"])


def markdown(runs: Sequence[Run]) -> str:
    """One table of all tasks at their largest sizes, and one of each task over sizes."""
    tasks, names = tasks_of(runs), architectures_of(runs)
    found = {(task, name): cells(runs, task, name) for task in tasks for name in architectures_of(runs, task)}
    said = f"Accuracy at the largest size tested: mean over seeds [{LEVEL:.0%} interval]; chance: one answer always."
    lines = ["# Probes", "", said, ""]
    heads = [f"{task} ({TASKS[task].size} {max(_any(found, task))}, trained to {trained_to(runs, task)})" for task in tasks]
    lines += _row(["", *heads]) + _row(["---"] * (1 + len(tasks)))
    for name in names:
        lines += _row([name, *(_largest(found[task, name]).said() if (task, name) in found else "" for task in tasks)])
    lines += _row(["chance", *(f"{_largest(_any(found, task)).chance:.3f}" for task in tasks)])
    for task in tasks:
        sizes = list(_any(found, task))
        lines += ["", f"## {task}: {TASKS[task].size}, trained to {trained_to(runs, task)}", ""]
        lines += _row(["", "rate", "steps", "parameters", "state", *map(str, sizes)]) + _row(["---"] * (5 + len(sizes)))
        for name in architectures_of(runs, task):
            best = chosen(runs, task, name)
            steps = "-".join(map(str, dict.fromkeys((min(r["steps"] for r in best), max(r["steps"] for r in best)))))
            state = "grows" if best[0]["state"] is None else f"{best[0]['state']:,}"
            facts = [name, f"{best[0]['learning_rate']:g}", steps, f"{best[0]['parameters']:,}", state]
            lines += _row([*facts, *(found[task, name][size].said() for size in sizes)])
    return "\n".join(lines) + "\n"


def _any(found: dict[tuple[str, str], dict[int, Cell]], task: str) -> dict[int, Cell]:
    return next(sizes for (of, _), sizes in found.items() if of == task)


def _largest(sizes: dict[int, Cell]) -> Cell:
    return sizes[max(sizes)]


def _row(words: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(words)} |"]


def draw(figure: Any, runs: Sequence[Run], columns: int = 3) -> None:
    """Accuracy against size, a panel per task: the mean over seeds, its interval, and seeds as thin lines."""
    tasks, names = tasks_of(runs), architectures_of(runs)
    columns = min(columns, len(tasks))
    panels = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False).flatten()
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    for axes, task in zip(panels, tasks, strict=False):
        for name in architectures_of(runs, task):
            found, color = cells(runs, task, name), f"C{names.index(name) % 10}"
            sizes = sorted(found)
            style = {"color": color, "ls": "-" if names.index(name) < 10 else "--"}
            axes.plot(sizes, [found[size].mean for size in sizes], label=name, **style)
            for values in zip(*(found[size].values for size in sizes), strict=True):
                axes.plot(sizes, values, lw=0.5, alpha=0.7, **style)
            if len(found[sizes[0]].values) > 1:
                axes.fill_between(sizes, *zip(*(found[size].interval for size in sizes), strict=True), alpha=0.12, color=color)
        axes.plot(sizes, [found[size].chance for size in sizes], "k:", lw=0.8, label="chance")
        axes.axvline(trained_to(runs, task), color="gray", lw=0.8, ls=":")
        axes.set(xlabel=f"{TASKS[task].size} (trained to {trained_to(runs, task)})", title=task, xscale="log", ylim=(-0.03, 1.03))
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    panels[0].set_ylabel("accuracy")


def draw_by_state(figure: Any, runs: Sequence[Run]) -> None:
    """A panel per task: accuracy at the largest trained size against the numbers that the state holds, a line for each stack of
    kinds over its widths and settings; a dashed line for each architecture whose state grows."""
    tasks = tasks_of(runs)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for number, (kinds, names) in enumerate(_by_kinds(runs, task).items()):
            points = [(chosen(runs, task, name)[0]["state"], _at_trained(runs, task, name)) for name in names]
            fixed = sorted(((state, cell) for state, cell in points if state is not None), key=lambda point: point[0])
            style = {"color": f"C{number % 10}"}
            for cell in [cell for state, cell in points if state is None]:
                axes.axhline(cell.mean, ls="--", lw=1, label=f"{kinds}: grows", **style)
            if fixed:
                axes.plot([state for state, _ in fixed], [cell.mean for _, cell in fixed], marker="o", label=kinds, **style)
            for state, cell in fixed:
                axes.plot([state] * len(cell.values), cell.values, ".", ms=4, alpha=0.6, **style)
        axes.set(xscale="log", xlabel="numbers in the state", title=task, ylim=(-0.03, 1.03))
        axes.set_ylabel(f"accuracy at {TASKS[task].size} {trained_to(runs, task)}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


def _at_trained(runs: Sequence[Run], task: str, name: str) -> Cell:
    """At the largest size tested that was trained, or the smallest tested."""
    found = cells(runs, task, name)
    return found[max((size for size in found if size <= trained_to(runs, task)), default=min(found))]


def _by_kinds(runs: Sequence[Run], task: str) -> dict[str, list[str]]:
    """Architectures whose layers are of the same kinds, together."""
    found: dict[str, list[str]] = {}
    for name in architectures_of(runs, task):
        model = chosen(runs, task, name)[0]["model"]
        kinds = [model["layers"][layer]["mixer"]["kind"] for layer in model["pattern"]]
        found.setdefault(BETWEEN_LAYERS.join(kinds), []).append(name)
    return found
