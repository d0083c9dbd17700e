"""Words of a command line -> evaluations with their settings.

    perplexity,bigram max_tokens=100000          two tasks, and a setting of each that has it
    perplexity,bigram perplexity.rule=harness    a setting of one
    configs/eval/text.yaml                       a suite: `tasks: {NAME: {task: TASK, key: value}}`; NAME is the task unless given

Reports carry the names, so that a suite can hold a task twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf

from eval.tasks import TASKS, Task
from llm.config import build, load
from llm.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class SuiteConfig:
    """A suite's file. tasks: settings by name, and `task` where the name is not the task's."""

    tasks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """An evaluation to run: `name` is its report's, `task` its key in the table."""

    name: str
    task: str
    config: Any

    @property
    def entry(self) -> Task:
        return TASKS[self.task]


def read_plan(words: Sequence[str]) -> list[Planned]:
    """The evaluations that the words name, in their order. Raises ConfigError."""
    named = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    wanted: dict[str, dict[str, Any]] = {}
    for word in named:
        wanted |= _suite(word) if word.endswith((".yaml", ".yml")) else {task: {"task": task} for task in word.split(",") if task}
    if not wanted:
        raise ConfigError(f"no task is named; give one of {', '.join(TASKS)}, or a suite such as configs/eval/text.yaml")
    for settings in wanted.values():
        if settings["task"] not in TASKS:
            raise ConfigError(f"task ({settings['task']}) is unknown; {did_you_mean(settings['task'], TASKS)}")
    own = _shared_out(overrides, {name: settings["task"] for name, settings in wanted.items()})
    return [_planned(name, settings, own[name]) for name, settings in wanted.items()]


def _suite(file: str) -> dict[str, dict[str, Any]]:
    tasks = load(SuiteConfig, [file], {}).tasks
    for name, settings in tasks.items():
        if settings is not None and not isinstance(settings, dict):
            raise ConfigError(f"{file}: tasks.{name} ({settings}) must hold settings; write {name}: {{key: value}}")
    return {name: {"task": name, **(settings or {})} for name, settings in tasks.items()}


def _shared_out(overrides: list[str], tasks: dict[str, str]) -> dict[str, list[str]]:
    """Each task's own overrides. Raises ConfigError for one that no task has."""
    own: dict[str, list[str]] = {name: [] for name in tasks}
    for word in overrides:
        first, _, rest = word.partition("=")[0].partition(".")
        if first in own and rest:
            own[first].append(word.removeprefix(f"{first}."))
            continue
        having = [name for name, task in tasks.items() if first in {f.name for f in fields(TASKS[task].config)}]
        if not having and len(tasks) > 1:
            known = {f.name for task in tasks.values() for f in fields(TASKS[task].config)}
            raise ConfigError(f"setting ({word}) is of none of {', '.join(tasks)}; {did_you_mean(first, known | set(tasks))}")
        for name in having or tasks:
            own[name].append(word)
    return own


def _planned(name: str, settings: dict[str, Any], overrides: list[str]) -> Planned:
    values = {key: value for key, value in settings.items() if key != "task"}
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(overrides))
    except Exception as error:
        raise ConfigError(f"{' '.join(overrides)} are no settings ({' '.join(str(error).split())}); write key=value") from None
    return Planned(name, settings["task"], build(TASKS[settings["task"]].config, merged, {}))
