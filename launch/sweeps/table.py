"""How a sweep's runs are: for the screen, and as files - summary.md and table.csv of all, table.jsonl of the finished.

table.jsonl is what `braid-eval scaling` reads: parameters, tokens, loss, FLOPs, hours and family of each finished run.
"""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.scaling.run_folders import FolderConfig, read_runs
from launch.provenance import evaluations
from launch.sweeps.config import Point
from launch.sweeps.folder import FINISHED, Sweep
from llm.errors import DataError
from llm.train.metrics import read_metrics
from llm.train.run_folder import RunFolder
from llm.whole_file import write_text

FIGURES = ("step", "loss", "validation_loss")
OF_FINISHED = ("params", "tokens", "flops", "hours")


def rows_of(sweep: Sweep, active: set[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row per run: its name, what sets it apart, how it is, what is known of it; and a scaling study's row per finished run."""
    finished = _finished(sweep)
    rows = []
    for point in sweep.points:
        state, folder = sweep.state(point, point.name in active), RunFolder(sweep.run(point))
        records = read_metrics(folder) if folder.metrics.is_file() else []
        figures = {name: next((r[name] for r in reversed(records) if name in r), None) for name in FIGURES}
        row = {"run": point.name, **_settings(point), "state": state.word, **figures}
        row |= {name: finished.get(str(folder.path), {}).get(name) for name in OF_FINISHED} | _evaluated(folder)
        rows.append(row | {"said": "" if state.word == FINISHED else state.sentence})
    return rows, list(finished.values())


def shown(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> Group:
    """For a screen: what sets runs apart is in their names, and what they said below."""
    table = Table(title=f"{sweep.path}: {_counts(rows)}", title_justify="left")
    told_by_name = {name for point in sweep.points for name in _settings(point)} | {"said", "params", "tokens", "flops"}
    columns = [name for name in _columns(rows) if name not in told_by_name]
    for name in columns:
        table.add_column(name.removeprefix("eval-").replace("_", " "), no_wrap=name in ("run", "state"))
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    return Group(table, *(Text(f"{row['run']}: {row['said']}") for row in rows if row["said"]))


def write_tables(sweep: Sweep, rows: Sequence[dict[str, Any]], finished: Sequence[dict[str, Any]]) -> None:
    columns = _columns(rows)
    lines = [f"# {sweep.path.name}: {_counts(rows)}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(name)).replace('|', '/') for name in columns)} |" for row in rows]
    write_text(sweep.path / "summary.md", "\n".join(lines) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: row.get(name) for name in columns} for row in rows)
    write_text(sweep.path / "table.csv", text.getvalue())
    write_text(sweep.path / "table.jsonl", "".join(json.dumps(row) + "\n" for row in finished))


def _finished(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """What `braid-eval scaling` makes of each finished run, by its folder."""
    try:
        rows, _ = read_runs(sweep.path, FolderConfig())
    except DataError:
        return {}
    return {row["line"]: {"run": row["line"], **row} for row in rows}


def _settings(point: Point) -> dict[str, str]:
    """What sets it apart; files by their names."""
    pairs = [word.partition("=")[::2] if "=" in word else ("files", word) for word in point.words]
    return {key.rpartition(".")[2]: value for key, value in pairs}


def _evaluated(folder: RunFolder) -> dict[str, float]:
    """Figures of its evaluations, by task."""
    found = evaluations(folder.report)
    return {f"{task}/{name}": value for task in found if task.startswith("eval-") for name, value in found[task].items()}


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In the order of their first row, `said` last, without those that nothing is known of."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, ""))
    return [*(name for name in names if name != "said"), *(["said"] if "said" in names else [])]


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    words = [row["state"] for row in rows]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
