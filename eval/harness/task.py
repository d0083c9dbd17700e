"""lm-evaluation-harness' tasks on our models: `eval/run.py --model PATH lm_eval lm_eval.tasks=TASK,TASK`.

Local tasks need no network: `configs/eval/lm_eval/` holds some, and `data` is the file that they read.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.figures import Figure, Result
from eval.subject import Subject
from llm.config import configs_root
from llm.errors import ConfigError

LOCAL = "eval/lm_eval"


@dataclass(frozen=True)
class HarnessConfig:
    """tasks: names of the harness', or of those in `include`, with commas. include: a folder of task files, beside our own ones.

    data: a local file that the tasks read instead of theirs. limit: documents of each task at most. shots: examples before each.
    max_length: tokens at most, cut off on the left; null: the model's positions or training length. lanes: rows of a batch.
    """

    tasks: str = ""
    include: str | None = None
    data: str | None = None
    limit: int | None = None
    shots: int | None = None
    max_length: int | None = None
    lanes: int = 16

    def check(self) -> None:
        """Raises ConfigError."""
        if not self.tasks:
            local = ", ".join(path.stem for path in sorted((configs_root() / LOCAL).glob("*.yaml")))
            raise ConfigError(f"lm_eval.tasks is empty; name tasks of the harness (`lm-eval ls tasks`), or a local one: {local}")
        for name in ("limit", "max_length", "lanes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"lm_eval.{name} ({value}) must be at least 1")
        for name in ("include", "data"):
            value = getattr(self, name)
            if value is not None and not Path(value).exists():
                raise ConfigError(f"lm_eval.{name} ({value}) does not exist; name a local path")


def harness(subject: Subject, config: HarnessConfig) -> Result:
    """The harness' metrics with its standard errors, on the first rank; documents are dealt over the ranks by the harness."""
    config.check()
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("lm_eval needs lm-evaluation-harness, which is not installed; pip install 'braid-lm[eval]'") from None
    from eval.harness.model import BraidLM

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    include = [str(configs_root() / LOCAL)] + ([] if config.include is None else [config.include])
    names = config.tasks.split(",")
    # its own thousands of tasks take half a minute to index
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"lm_eval.tasks ({unknown[0]}) is no task of lm-evaluation-harness nor of {', '.join(include)}")
    model = BraidLM(subject=subject, max_length=config.max_length, batch_size=config.lanes)
    found = simple_evaluate(
        model,
        tasks=names if config.data is None else [reading(manager, name, config.data) for name in names],
        num_fewshot=config.shots,
        limit=config.limit,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
    )
    if found is None:
        return Result({}, {})
    details = {"max_length": model.max_length, "cut_off": model.cut_off, "versions": found["versions"], "configs": found["configs"]}
    return Result(dict(_figures(found)), details, f"{model.max_length} tokens at most, {model.cut_off} requests cut off")


def reading(manager: Any, task: str, data: str) -> dict[str, Any]:
    """A task's settings with a local file in place of its data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = manager.task_index[task].yaml_path
    if path is None:
        raise ConfigError(f"lm_eval.data ({data}) cannot be read by {task}, which has no task file; leave it out")
    settings = load_yaml(path)
    return {**settings, "task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": str(Path(data).resolve())}}


def _figures(found: dict[str, Any]) -> Any:
    for task, values in found["results"].items():
        n = found["n-samples"].get(task, {}).get("effective", 0)
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if kind and isinstance(value, int | float) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{kind}")
                name = f"{task} {metric}" + ("" if kind == "none" else f" {kind}")
                yield name, Figure(float(value), n, error if isinstance(error, float) else None)
