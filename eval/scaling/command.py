"""`braid-eval scaling TABLE... key=value...`: writes scaling.json, summary.md, pictures and, for a budget, plan.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.scaling.config import ScalingConfig
from eval.scaling.report import place, write
from eval.scaling.run_folders import read_runs
from eval.scaling.study import study
from eval.scaling.table import Runs, as_runs, read_table
from llm.config import load
from llm.errors import ConfigError


def scaling(words: Sequence[str]) -> dict[str, Any]:
    """Study tables or folders of runs; write and print what is found, and return the report. Raises ConfigError, DataError."""
    tables, config = parse(words)
    runs, left_out = read(tables, config)
    folder = place(config.out, Path(tables[0]))
    return write(study(tables, runs, config, left_out), folder)


def parse(words: Sequence[str]) -> tuple[list[str], ScalingConfig]:
    """Tables and folders; YAML files and key=value are settings. Raises ConfigError."""
    tables = [word for word in words if "=" not in word and not word.endswith((".yaml", ".yml"))]
    config = load(ScalingConfig, [word for word in words if word not in tables], {})
    config.check()
    if not tables:
        raise ConfigError("scaling needs a table of runs; give a CSV file, a JSONL file or a folder of runs")
    return tables, config


def read(tables: Sequence[str], config: ScalingConfig) -> tuple[Runs, list[str]]:
    """All rows together, and a sentence per run that is left out."""
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for path in map(Path, tables):
        if path.is_dir():
            found, without = read_runs(path, config.runs)
            left_out += without
        else:
            found = read_table(path)
        rows += found
    return as_runs(rows), left_out
