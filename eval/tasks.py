"""The table of evaluations, and how one is run and reported."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from eval.bigram import BigramConfig, bigram
from eval.perplexity import PerplexityConfig, perplexity
from eval.report import show, write_report
from eval.subject import Subject, load_subject
from llm.config import load
from llm.errors import ConfigError, did_you_mean

# TASK -> (its settings, what it does)
TASKS: dict[str, tuple[type, Callable[[Subject, Any], dict[str, Any]]]] = {
    "perplexity": (PerplexityConfig, perplexity),
    "bigram": (BigramConfig, bigram),
}


def evaluate(run: str, task: str, settings: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """Run one task on a run folder or checkpoint, write its report, print it and return it.

    Raises:
        ConfigError: an unknown task or setting. CheckpointError, DataError: what is missing, damaged or does not belong together.
    """
    if task not in TASKS:
        raise ConfigError(f"task ({task}) is unknown; {did_you_mean(task, TASKS)}")
    schema, do = TASKS[task]
    config = load(schema, settings, {})
    subject = load_subject(run, device)
    started = time.perf_counter()
    results = do(subject, config)
    seconds = time.perf_counter() - started
    report = {"task": task, "results": results, "settings": asdict(config), "seconds": seconds, "subject": subject.origin}
    path = write_report(subject.report / f"eval-{task}.json", report)
    show(report, path)
    return report
