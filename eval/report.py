"""Reports: one JSON file per evaluation with everything needed to repeat it, and a few lines on the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm.train.run_folder import versions, write_text

FORMATS = {"nats_per_token": "{:.4f}", "token_perplexity": "{:.3f}", "bits_per_byte": "{:.4f}"}


def write_report(path: Path, report: dict[str, Any]) -> Path:
    """Write the report, with the versions of everything that made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**report, "versions": versions()}, indent=1) + "\n")
    return path


def show(report: dict[str, Any], path: Path) -> None:
    """The figures with their standard errors, and over what they were taken."""
    results, subject = report["results"], report["subject"]
    table = Table(title=f"{report['task']} of {subject['run']}, step {subject['step']}", title_justify="left")
    for heading in ("figure", "value", "standard error"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, form in FORMATS.items():
        found = results[name]
        error = "-" if found["standard_error"] is None else form.format(found["standard_error"])
        table.add_row(name.replace("_", " "), form.format(found["value"]), error)
    console = Console()
    console.print(table)
    over = f"{results['tokens']:,} tokens, {results['bytes']:,} bytes, {results['documents']:,} documents"
    console.print(f"over {over} in {report['seconds']:.1f} s; documents' ends are not scored", highlight=False)
    console.print(str(path), highlight=False, soft_wrap=True)
