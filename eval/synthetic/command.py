"""`braid-eval probe key=value...`: small models trained from scratch on synthetic tasks, and what they learned.

Writes runs.jsonl as runs end, and from them summary.md, probe.json, accuracy.png and state.png. The same command goes on where it
was killed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report import write_report
from eval.synthetic.config import ProbeConfig
from eval.synthetic.points import Run, work_off
from eval.synthetic.table import architectures_of, cells, chosen, draw, draw_by_state, markdown, tasks_of
from llm.config import load
from llm.whole_file import write_text

RUNS, SUMMARY, REPORT, ACCURACY, STATE = "runs.jsonl", "summary.md", "probe.json", "accuracy.png", "state.png"


def probe(words: Sequence[str]) -> dict[str, Any]:
    """Train, test, write and print the table, and return the report. Raises ConfigError, DataError."""
    config = load(ProbeConfig, words, {})
    folder = Path(config.out)
    runs = work_off(config.points(), folder / RUNS, config.processes, config.threads)
    return write(runs, folder)


def write(runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    """The report of runs: the figures that the table shows, and what chose them."""
    found = [
        {
            "task": task,
            "architecture": name,
            "learning_rate": chosen(runs, task, name)[0]["learning_rate"],
            "sizes": {
                size: {"mean": cell.mean, "interval": cell.interval, "seeds": cell.values, "chance": cell.chance}
                for size, cell in cells(runs, task, name).items()
            },
        }
        for task in tasks_of(runs)
        for name in architectures_of(runs, task)
    ]
    text = markdown(runs)
    write_text(folder / SUMMARY, f"{text}\n![accuracy]({ACCURACY})\n![accuracy against the size of the state]({STATE})\n")
    write_pictures(runs, folder)
    print(text)
    print(folder / SUMMARY)
    return write_report(folder / REPORT, {"cells": found, "runs": len(runs), "cpu_seconds": sum(r["cpu_seconds"] for r in runs)})


def write_pictures(runs: Sequence[Run], folder: Path) -> None:
    from matplotlib.figure import Figure

    tasks = len(tasks_of(runs))
    for name, drawn, columns in ((ACCURACY, draw, min(3, tasks)), (STATE, draw_by_state, tasks)):
        figure = Figure(figsize=(4.4 * columns, 3.6 * -(-tasks // columns)), layout="constrained")
        drawn(figure, runs)
        figure.savefig(folder / name, dpi=120)
