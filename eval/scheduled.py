"""Evaluations inside a training run: the engine is the model, all ranks keep in step, and time is bounded.

Under ZeRO-3 a forward pass gathers each layer's weights from all ranks and lets them go again. So the engine itself is called,
never the bare module, and every rank makes as many calls as the others: one that has nothing left to read reads a single token.
The full model exists nowhere. Whether the time is up is one rank's clock, told to all.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.evaluate import make_report
from eval.models.braid import BraidModel
from eval.plan import Planned, read_plan
from eval.report import path_of, shown, write_report
from eval.subject import Subject
from llm.docs import Docs
from llm.errors import BraidError, ConfigError
from llm.state import State
from llm.train.config import RunConfig
from llm.train.run_folder import RunFolder
from llm.train.scheduled import Evaluation
from llm.train.world import World, say


class EngineModel(BraidModel):
    """The model inside a DeepSpeed engine."""

    def __init__(self, engine: Any, folder: RunFolder, window: int):
        super().__init__(engine.module.decoder, folder.tokenizer, window)
        self.engine = engine

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @torch.no_grad()
    def logits(
        self, tokens_BT: Tensor, state: State | None = None, starts_BT: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, State]:
        docs = None if starts_BT is None else Docs(starts_BT.to(self.device))
        logits, state = self.engine(tokens_BT.to(self.device), None, docs, state)
        return (logits[:, -1:] if last_only else logits), state


@dataclass(frozen=True)
class InStep:
    """Keeps ranks in step that must call the model equally often. end: by the first rank's clock, in seconds."""

    world: World
    end: float

    def rounds(self, mine: int) -> int:
        """Calls that all ranks make when this one has `mine` to make."""
        return max(self.world.gather(mine))

    def check_time(self) -> None:
        """Raise OutOfTime on all ranks when the first one's time is up."""
        if not self.world.all(not self.world.first or time.monotonic() < self.end):
            raise OutOfTime


class OutOfTime(Exception):
    """The time for evaluations is over."""


def planned_tasks(config: RunConfig) -> list[Planned]:
    """Of `train.evaluate`, if it asks for any. Raises ConfigError."""
    plan = read_plan(config.train.evaluate.tasks) if config.train.evaluate.every else []
    outside = [planned.task for planned in plan if not planned.entry.in_training]
    if outside:
        raise ConfigError(f"train.evaluate.tasks ({outside[0]}) cannot run inside training; evaluate checkpoints with eval/run.py")
    return plan


def evaluation(config: RunConfig, folder: RunFolder, world: World) -> Evaluation:
    """The evaluations of `train.evaluate`. Raises ConfigError."""
    plan = planned_tasks(config)
    return lambda engine, step: run(plan, config, folder, world, engine, step)


def run(plan: list[Planned], config: RunConfig, folder: RunFolder, world: World, engine: Any, step: int) -> dict[str, float]:
    """Figures by `eval/NAME/FIGURE`; reports go to report/step-N. What cannot be evaluated is said, and training goes on."""
    end = time.monotonic() + 60 * config.train.evaluate.minutes
    found: dict[str, float] = {}
    engine.eval()
    try:
        subject = engine_subject(config, folder, world, engine, step, InStep(world, end))
        for planned in plan:
            started = time.perf_counter()
            result = planned.entry.do(subject, planned.config)
            seconds = time.perf_counter() - started
            if world.first:
                report = make_report(planned, subject.name, subject.origin, result, seconds, world)
                write_report(path_of(subject.report, planned.name), report)
            said = ", ".join(f"{x.replace('_', ' ')} {shown(f.value, f.standard_error)}" for x, f in result.figures.items())
            say(world, f"step {step}: {planned.name}: {said} ({seconds:.0f} s)")
            found |= {f"eval/{planned.name}/{name}": figure.value for name, figure in result.figures.items()}
    except OutOfTime:
        say(world, f"step {step}: evaluation left out after {config.train.evaluate.minutes:g} minutes; give it a limit of text")
    except BraidError as error:
        say(world, f"step {step}: evaluation left out: {error}")
    finally:
        engine.train()
    return found


def engine_subject(config: RunConfig, folder: RunFolder, world: World, engine: Any, step: int, pace: InStep) -> Subject:
    model = EngineModel(engine, folder, config.data.sequence_length)
    manifest = config.data.load_manifest()
    origin = {"run": config.name, "step": step, "tokenizer": manifest.tokenizer.sha256, "device": world.device.type}
    report = folder.report / f"step-{step}"
    return Subject(config.name, model, report, origin, world, config.data, pace=pace)
