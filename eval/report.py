"""Reports: one JSON file per evaluation with everything needed to repeat it, and tables and pictures of several side by side."""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.tasks import TASKS
from llm.train.run_folder import versions
from llm.whole_file import write_text

# beside those of every run
PACKAGES = ("transformers", "lm_eval", "scipy", "matplotlib")
SUMMARY = "eval-summary.md"
# from here on values are written as powers of ten
LARGE = 1e7

Report = dict[str, Any]


def path_of(folder: Path, name: str) -> Path:
    return folder / f"eval-{name}.json"


def read_report(path: Path) -> Report | None:
    """A report that was written, or None: there is none, or one of another release."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and "key" in report and "figures" in report else None


def write_report(path: Path, report: Report) -> Report:
    """Write the report with the versions of everything that made it; as it will be read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**report, "versions": all_versions()}, indent=1, default=str) + "\n"
    write_text(path, text)
    return json.loads(text)


def all_versions() -> dict[str, Any]:
    found = versions()
    for name in PACKAGES:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["packages"][name] = "not installed"
    return found


def reports_of(folder: Path, weights: str | None) -> list[Report]:
    """Those in a folder that are about the same weights."""
    found = (read_report(path) for path in sorted(folder.glob("eval-*.json")))
    return [report for report in found if report is not None and report["subject"].get("weights") == weights]


def rows(reports: Sequence[Report]) -> Iterable[tuple[str, str, str, list[str]]]:
    """(evaluation, figure, n, each model's value), in the order of the reports; a model's cell may be empty."""
    models = list(dict.fromkeys(report["model"] for report in reports))
    for name in dict.fromkeys(report["name"] for report in reports):
        of_model = {report["model"]: report["figures"] for report in reports if report["name"] == name}
        for figure in dict.fromkeys(key for figures in of_model.values() for key in figures):
            found = [of_model.get(model, {}).get(figure) for model in models]
            n = "/".join(dict.fromkeys(f"{f['n']:,}" for f in found if f))
            yield name, figure.replace("_", " "), n, ["" if f is None else shown(f["value"], f["standard_error"]) for f in found]


def shown(value: float, error: float | None) -> str:
    """With as many digits as two of its standard error."""
    if error is None or not 0 < error < math.inf:
        return f"{value:,.5g}"
    if abs(value) >= LARGE:
        return f"{value:.3g} ± {error:.2g}"
    digits = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def show(reports: Sequence[Report]) -> None:
    """The figures of all models in one table on the terminal."""
    table = Table(title="value ± standard error", title_justify="left")
    for heading in ("evaluation", "figure", "n"):
        table.add_column(heading, justify="right" if heading == "n" else "left")
    for model in dict.fromkeys(report["model"] for report in reports):
        table.add_column(model, justify="right")
    for name, figure, n, values in rows(reports):
        table.add_row(name, figure, n, *values)
    # a log file is no narrow terminal
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for said in dict.fromkeys(f"{report['name']}: {report['over']}" for report in reports if report["over"]):
        console.print(said, highlight=False, soft_wrap=True)


def write_summary(folder: Path, reports: Sequence[Report]) -> Path:
    """A markdown table of the figures, the pictures, and what was measured how."""
    folder.mkdir(parents=True, exist_ok=True)
    models = list(dict.fromkeys(report["model"] for report in reports))
    lines = ["# Evaluation", "", "Value ± standard error; n is what the value is an average over.", ""]
    lines += [f"| evaluation | figure | n | {' | '.join(models)} |", f"|---|---|---|{'---|' * len(models)}"]
    lines += [f"| {name} | {figure} | {n} | {' | '.join(values)} |" for name, figure, n, values in rows(reports)]
    for picture in write_pictures(folder, reports):
        lines += ["", f"![{picture.stem}]({picture.name})"]
    lines += sources(reports)
    lines += ["", "| evaluation | model | over | settings | weights | seconds |", "|---|---|---|---|---|---|"]
    for r in reports:
        settings = ", ".join(f"{key}={value}" for key, value in r["settings"].items() if value is not None)
        weights = (r["subject"].get("weights") or "")[:12]
        lines.append(f"| {r['name']} | {r['model']} | {r['over']} | {settings} | {weights} | {r['seconds']:.1f} |")
    write_text(folder / SUMMARY, "\n".join(lines) + "\n")
    return folder / SUMMARY


def sources(reports: Sequence[Report]) -> list[str]:
    """Lines of a table of the figures by source, where a text has several."""
    found = [(r, r["details"]["by_source"]) for r in reports if len(r["details"].get("by_source", ())) > 1]
    if not found:
        return []
    figures = [name for name, value in next(iter(found[0][1].values())).items() if isinstance(value, dict)]
    lines = ["", f"| evaluation | source | model | documents | tokens | {' | '.join(x.replace('_', ' ') for x in figures)} |"]
    lines.append(f"|{'---|' * (5 + len(figures))}")
    for report, by_source in found:
        for source, of in by_source.items():
            values = [shown(of[x]["value"], of[x]["standard_error"]) if x in of else "" for x in figures]
            counted = f"{of['documents']:,} | {of['tokens']:,}"
            lines.append(f"| {report['name']} | {source} | {report['model']} | {counted} | {' | '.join(values)} |")
    return lines


def write_pictures(folder: Path, reports: Sequence[Report]) -> list[Path]:
    """eval-NAME.png for each evaluation that draws one, with all models in it."""
    from matplotlib.figure import Figure

    written = []
    for name in dict.fromkeys(report["name"] for report in reports):
        mine = [report for report in reports if report["name"] == name]
        draw = TASKS[mine[0]["task"]].picture if mine[0]["task"] in TASKS else None
        if draw is not None:
            figure = Figure(figsize=(10, 4.5), layout="constrained")
            draw(figure, {report["model"]: report["details"] for report in mine})
            written.append(folder / f"eval-{name}.png")
            figure.savefig(written[-1], dpi=130)
    return written
