"""Evaluations of models, one model after another, on all ranks: what was done already with the same settings is not done again."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eval.figures import Result
from eval.find import Found, Reading, find_model
from eval.plan import Planned
from eval.report import Report, path_of, read_report, reports_of, show, write_report, write_summary
from eval.subject import Subject
from eval.world import agreed
from llm.errors import ConfigError
from llm.train import checkpoint_files as files
from llm.train.world import World, say

NO_MODEL = "-"


def evaluate(
    models: Sequence[str], plan: Sequence[Planned], reading: Reading, world: World, again: bool = False, out: Path | None = None
) -> list[Report]:
    """Run the plan on each model, write and print reports, and return them. All ranks call it together.

    Args:
        again: also what was done already. out: the folder of all reports, instead of each model's own.

    Raises:
        BraidError: what is missing, damaged or does not belong together.
    """
    asked = [planned for planned in plan if planned.entry.model]
    if asked and not models:
        raise ConfigError(f"task ({asked[0].name}) evaluates a model; name it with --model PATH")
    found = _named_apart(models, [find_model(path) for path in models])
    reports = []
    for model in found:
        folder = model.report if out is None else out / model.name
        of_model = _run(asked, model, folder, reading, world, again)
        reports += of_model
        if world.first:
            write_summary(folder, reports_of(folder, model.origin["weights"]))
    shared = out or (found[0].report if len(found) == 1 else Path("report"))
    reports += _run([planned for planned in plan if not planned.entry.model], None, shared, reading, world, again)
    if world.first:
        show(reports)
        if len(found) != 1:
            print(write_summary(shared, reports))
    return reports


def _named_apart(paths: Sequence[str], found: list[Found]) -> list[Found]:
    """Models of one name are called by their paths."""
    reports = [model.report for model in found]
    twice = next((path for k, path in enumerate(paths) if reports[k] in reports[:k]), None)
    if twice is not None:
        raise ConfigError(f"model ({twice}) is given twice; leave one out")
    names = [model.name for model in found]
    return [
        replace(model, name="-".join(Path(path).parts).strip("-/.")) if names.count(model.name) > 1 else model
        for path, model in zip(paths, found, strict=True)
    ]


def _run(plan: Sequence[Planned], model: Found | None, folder: Path, reading: Reading, world: World, again: bool) -> list[Report]:
    """Reports of one model, or of none. It is loaded when the first evaluation needs it."""
    subject, reports = None, []
    for planned in plan:
        path = path_of(folder, planned.name)
        origin = {} if model is None else {**model.origin, **reading.said}
        done = None if again else read_report(path)
        # one rank's view of the folder decides for all
        if world.gather(done is not None and done["key"] == identity(planned, origin))[0]:
            reports.append(done or read_report(path))
            say(world, f"{path}: done already; --again repeats it")
            continue
        if model is not None and subject is None:
            subject = model.load(world, reading)
        started = time.perf_counter()
        result = on_ranks(planned, subject, world)
        seconds = time.perf_counter() - started
        report = make_report(planned, NO_MODEL if model is None else model.name, origin, result, seconds, world)
        if world.first:
            report = write_report(path, report)
        say(world, f"{path}: {report['seconds']:.1f} s")
        reports.append(report)
    return reports


def make_report(planned: Planned, model: str, origin: dict[str, Any], result: Result, seconds: float, world: World) -> Report:
    """All that a report holds but versions, which are added when it is written."""
    return {
        "name": planned.name,
        "task": planned.task,
        "model": model,
        "figures": {name: asdict(figure) for name, figure in result.figures.items()},
        "over": result.over,
        "details": result.details,
        "settings": asdict(planned.config),
        "subject": origin,
        "ranks": world.size,
        "seconds": seconds,
        "key": identity(planned, origin),
    }


def on_ranks(planned: Planned, subject: Subject | None, world: World) -> Result:
    """The result, on the first rank; others have it too where all ranks take part. An error of the first rank is all ranks'."""
    if planned.entry.all_ranks or world.size == 1:
        return planned.entry.do(subject, planned.config)
    alone = None if subject is None else subject.alone()
    return agreed(world, lambda: planned.entry.do(alone, planned.config) if world.first else Result({}, {}))


def identity(planned: Planned, origin: dict[str, Any]) -> str:
    """A hash of what a result depends on: task, settings, the model, and the files and folders that settings name."""
    settings = asdict(planned.config)
    named = {key: fingerprint(Path(value)) for key, value in settings.items() if isinstance(value, str) and Path(value).exists()}
    content = [planned.task, settings, named, {key: value for key, value in origin.items() if key != "model"}]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """Of a file its content; of a folder its files' names, sizes and times."""
    if path.is_file():
        return files.digest(path)
    inside = sorted((str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(json.dumps(inside).encode()).hexdigest()
