"""A table of runs: CSV with a heading, or one JSON object a line. Every damaged row is named by its line.

params, tokens, loss are needed. flops: of training, default 6 N D. family: what is compared, such as an architecture. hours: of
accelerators together. unique: different tokens read, or epochs = tokens / unique. Other columns are left alone.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import CostLaw, fit_cost
from eval.scaling.forms import Points
from llm.errors import DataError, did_you_mean

NEEDED = ("params", "tokens", "loss")
NUMBERS = (*NEEDED, "flops", "hours", "unique", "epochs")
# names that other projects' tables give them
SPELLINGS = {
    **{name: name for name in (*NUMBERS, "family")},
    "n": "params",
    "parameters": "params",
    "d": "tokens",
    "c": "flops",
    "compute": "flops",
    "unique_tokens": "unique",
}


@dataclass(frozen=True)
class Runs:
    """One entry per run; hours is NaN where unknown. line: where it was read, for messages. has_flops: given, not 6 N D."""

    params: ndarray
    tokens: ndarray
    loss: ndarray
    flops: ndarray
    unique: ndarray
    hours: ndarray
    family: ndarray
    line: ndarray
    has_flops: bool

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, rows: ndarray) -> "Runs":
        arrays = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "has_flops"}
        return Runs(**arrays, has_flops=self.has_flops)

    @property
    def points(self) -> Points:
        return Points(*(np.log(values) for values in (self.params, self.tokens, self.flops, self.unique)))

    @property
    def cost(self) -> CostLaw:
        """FLOPs as a law of N and D: 6 N D, or fitted to the column."""
        return fit_cost(self.points.N, self.points.D, self.points.C) if self.has_flops else CostLaw()

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(self.family.tolist()))


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table. Raises DataError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"table {path} cannot be read ({error}); give a CSV file, a JSONL file or a folder of runs") from None
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise DataError(f"table {path} is empty; it needs the columns {', '.join(NEEDED)} and a row per run")
    rows = _json_rows(path, filled) if path.suffix in (".jsonl", ".json", ".ndjson") else _csv_rows(path, filled)
    return [_row(where, values) for where, values in rows]


def _json_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is no JSON ({error.msg}); write one object a line, or correct or remove it") from None
        if not isinstance(values, dict):
            raise DataError(f"{where} is a {type(values).__name__}; write one JSON object a line")
        yield where, values


def _csv_rows(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    heading = next(csv.reader([lines[0][1]]))
    for number, line in lines[1:]:
        values = next(csv.reader([line]))
        if len(values) != len(heading):
            raise DataError(f"{path}, line {number} holds {len(values)} values for {len(heading)} columns; correct or remove it")
        yield f"{path}, line {number}", dict(zip(heading, values, strict=True))


def _row(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {SPELLINGS[name.strip().lower()]: value for name, value in values.items() if name.strip().lower() in SPELLINGS}
    row: dict[str, Any] = {"family": str(known.pop("family", None) or "all").strip(), "line": where}
    for name, value in known.items():
        if value is not None and str(value).strip():
            row[name] = _number(where, name, value)
    for name in NEEDED:
        if name not in row:
            hint = did_you_mean(name, values) if values else "the row is empty"
            raise DataError(f"{where} has no {name}; {hint}")
    if "unique" not in row:
        row["unique"] = row["tokens"] / max(1.0, row.pop("epochs", 1.0))
    elif "epochs" in row and not math.isclose(row["unique"] * row["epochs"], row["tokens"], rel_tol=0.02):
        raise DataError(
            f"{where}: unique ({row['unique']:g}) times epochs ({row['epochs']:g}) must be tokens ({row['tokens']:g}); "
            "correct one or leave one out"
        )
    row["unique"] = min(row["unique"], row["tokens"])
    return row


def _number(where: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} ({value}) is no number; correct or remove the row") from None
    if not 0 < number < math.inf:
        raise DataError(f"{where}: {name} ({value}) must be positive and finite; correct or remove the row")
    return number


def as_runs(rows: Sequence[Mapping[str, Any]]) -> Runs:
    """Rows as arrays. FLOPs are given in all rows or in none. Raises DataError."""
    without = [row["line"] for row in rows if "flops" not in row]
    if without and len(without) < len(rows):
        raise DataError(f"{without[0]} has no flops while other rows have; give them everywhere, or nowhere for 6 N D")
    if not without:
        flops = np.array([row["flops"] for row in rows])
    else:
        flops = np.array([6.0 * row["params"] * row["tokens"] for row in rows])
    columns = {name: np.array([float(row.get(name, np.nan)) for row in rows]) for name in (*NEEDED, "unique", "hours")}
    family, line = np.array([row["family"] for row in rows]), np.array([row["line"] for row in rows])
    return Runs(**columns, flops=flops, family=family, line=line, has_flops=not without)
