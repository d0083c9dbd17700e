"""The phases of a run: which steps each has, under which config, and where its data goes on.

A border lies between two steps: the run saves, its engine is closed, and one with the next phase's settings goes on from that
checkpoint, as a start that finds it does. So a kill at a border changes nothing.

Rows are counted through the whole run. Phases whose sequences are cut alike (llm.data.cut_of) share one order: each lane of each
source goes on where the last of them left it, so nothing comes again before its epoch is over. Another cut has an order of its own,
from (seed, phase), in which text of earlier phases may come again.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from llm.data import Manifest, TokenStream, cut_of
from llm.data.permutation import source_key
from llm.errors import ConfigError, DataError
from llm.model import Decoder
from llm.train import checkpoint_files as files
from llm.train.config import RunConfig, configs_of_phases, naming, steps_of_phases
from llm.train.laws import check
from llm.train.schedule import learning_rate


@dataclass(frozen=True)
class Phase:
    """Steps `first` + 1 to `last` of a run, and the config that holds in them.

    tokens: trained on before. borders: the last step of each phase of the run.
    """

    number: int
    config: RunConfig
    first: int
    last: int
    tokens: int
    borders: tuple[int, ...]
    name: str = ""
    own_schedule: bool = False

    @property
    def of(self) -> int:
        """Phases of the run."""
        return len(self.borders)

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch * self.config.data.sequence_length

    def tokens_at(self, step: int) -> int:
        """Trained on, of all phases, after a step of this one."""
        return self.tokens + (step - self.first) * self.tokens_per_step

    @property
    def cut(self) -> tuple:
        """Phases with equal ones share an order."""
        return cut_of(self.config.data, self.config.train.batch)

    def rate(self, step: int) -> float:
        """The learning rate of a step: of the phase's own schedule, or the run's."""
        train = self.config.train
        if self.own_schedule:
            return learning_rate(train.schedule, train.optimizer.lr, step - self.first, self.last - self.first)
        return learning_rate(train.schedule, train.optimizer.lr, step, train.steps)

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        train, length = self.config.train, self.config.data.sequence_length
        return f"phase {self.number}{name}: steps {self.first + 1} to {self.last}, {train.batch} sequences of {length} tokens each"


def phases_of(config: RunConfig) -> list[Phase]:
    """The phases of a run; one that is all of it where none are given. Raises ConfigError."""
    found: list[Phase] = []
    first = tokens = 0
    configs = configs_of_phases(config)
    borders = tuple(accumulate(steps_of_phases(config, configs)))
    for k, (last, own_config) in enumerate(zip(borders, configs, strict=True)):
        given = config.train.phases[k : k + 1]
        name, own = (given[0].name, "schedule" in given[0].train) if given else ("", False)
        found.append(Phase(k, own_config, first, last, tokens, borders, name, own))
        first, tokens = last, found[-1].tokens_at(last)
    return found


def phase_after(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of the step that follows; the last one at the end."""
    return next((phase for phase in phases if step < phase.last), phases[-1])


def newest_step(checkpoints: Path) -> int:
    """Of the newest checkpoint, whole or not; 0: there is none."""
    return next(map(files.step_of, files.checkpoints(checkpoints)), 0)


def manifests_of(phases: Sequence[Phase], step: int = 0) -> list[Manifest | None]:
    """The dataset of each phase, read once where several have the same. None: it is gone, and only phases that are over at `step`
    read it, so that nothing ahead asks for it. Raises DataError, ConfigError.
    """
    found: dict[str, Manifest | None] = {}
    for phase in sorted(phases, key=lambda phase: over(phase, step)):
        name = phase.config.data.manifest
        if name not in found:
            found[name] = None
            may_be_gone = suppress(DataError, ConfigError) if over(phase, step) else nullcontext()
            with may_be_gone, naming(phase.number) if phase.number else nullcontext():
                found[name] = phase.config.data.load_manifest()
    return [found[phase.config.data.manifest] for phase in phases]


def over(phase: Phase, step: int) -> bool:
    """Whether nothing is left of a phase after `step`. The last one is never over: its end is looked at again."""
    return phase.last <= step and phase.number + 1 < phase.of


def check_phases(
    phases: Sequence[Phase],
    world_size: int,
    manifests: Sequence[Manifest | None],
    step: int = 0,
    tokenizer: Path | None = None,
) -> None:
    """The laws of each phase that is not over at `step`, and between it and the first. tokenizer: the run's, which stands for the
    first phase's where that dataset is gone. Raises ConfigError, DataError.
    """
    known = None if manifests[0] is None else manifests[0].tokenizer.sha256
    if known is None and tokenizer is not None and tokenizer.is_file():
        known = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    for phase, manifest in zip(phases, manifests, strict=True):
        if over(phase, step):
            continue
        assert manifest is not None
        with naming(phase.number) if phase.of > 1 else nullcontext():
            check(phase.config, world_size, manifest)
            if phase.own_schedule:
                phase.config.train.schedule.check("train.schedule", phase.last - phase.first)
            if phase.number:
                _check_same_run(phase.config, phases[0].config, manifest, known)


def _check_same_run(config: RunConfig, first: RunConfig, manifest: Manifest, tokenizer: str | None) -> None:
    kind, was = config.train.optimizer.kind, first.train.optimizer.kind
    if kind != was:
        raise ConfigError(f"train.optimizer.kind ({kind}) must be that of the first phase ({was}), whose states go on; use {was}")
    if tokenizer is None:
        raise DataError(
            f"data.manifest of the first phase ({first.data.manifest}) is gone, and so is the run's tokenizer.json; "
            "copy it from a checkpoint of the run"
        )
    if manifest.tokenizer.sha256 != tokenizer:
        raise DataError(
            f"data.manifest ({config.data.manifest}) must have the tokenizer of the first phase ({first.data.manifest}); "
            "prepare it again with that one"
        )
    if config.model != first.model:
        here, there = parameters_of(config), parameters_of(first)
        differing = next((name for name in {**here, **there} if here.get(name) != there.get(name)), None)
        if differing:
            raise ConfigError(
                f"model must have the parameters of the first phase, and differs in {differing}; leave sizes and layers alone"
            )


def parameters_of(config: RunConfig) -> dict[str, torch.Size]:
    """Shapes by name."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Decoder(config.model).named_parameters()}


def stream_of(phases: Sequence[Phase], k: int, manifest: Manifest, began: Sequence[int], split: str = "train") -> TokenStream:
    """What phase k reads of its dataset. began: the row at which each phase up to k began. Raises DataError, ConfigError."""
    after: tuple[TokenStream, int] | None = None
    # one of their datasets is another cut, so this one is that of them all
    alike = [phase for phase in phases[: k + 1] if phase.cut == phases[k].cut]
    seed = phases[k].config.seed
    if alike[0].number:
        seed = source_key(seed, f"phase {alike[0].number}")
    for phase in alike:
        config, n = phase.config, phase.number
        stream = TokenStream(manifest, split, config.data, seed, config.train.batch, began[n], after)
        if n < k:
            after = stream, began[n + 1]
    return stream


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: after `step` and row `consumed`, in a phase that reads `stream`.

    began: the row at which each phase up to this one began. same_states: whether states that the checkpoint carries belong
    before the stream's next rows, under the same model.
    """

    checkpoint: Path | None
    step: int
    consumed: int
    phase: Phase
    began: tuple[int, ...]
    stream: TokenStream
    same_states: bool


def start_of(phases: Sequence[Phase], manifests: Sequence[Manifest | None], checkpoint: Path | None) -> Start:
    """From a checkpoint: in its phase, or at the beginning of the next. Raises DataError, ConfigError."""
    if checkpoint is None:
        return Start(None, 0, 0, phases[0], (0,), stream_of(phases, 0, _there(phases[0], manifests), (0,)), False)
    progress = json.loads((checkpoint / files.PROGRESS).read_text())
    step, data = progress["step"], progress["data"]
    if step > phases[-1].last:
        raise ConfigError(f"train.steps ({phases[-1].last}) must be at least {step}, the step of {checkpoint}; raise it")
    was, phase = phases[progress.get("phase", 0)], phase_after(phases, step)
    began = (*progress.get("began", [0]), data["consumed"])[: phase.number + 1]
    stream, same = stream_of(phases, phase.number, _there(phase, manifests), began), False
    # behind a border to another cut nothing goes on from the rows before it
    if phase.cut == was.cut:
        last = stream if phase is was else stream_of(phases, was.number, _there(was, manifests), began)
        last.check_state(data)
        same = stream.identity() == last.identity() and phase.config.model == was.config.model
    return Start(checkpoint, step, data["consumed"], phase, began, stream, same)


def _there(phase: Phase, manifests: Sequence[Manifest | None]) -> Manifest:
    """The dataset of a phase that is to be trained. Raises DataError."""
    manifest = manifests[phase.number]
    if manifest is None:
        raise DataError(
            f"train.phases[{phase.number}]: data.manifest ({phase.config.data.manifest}) is gone, and the newest whole checkpoint "
            "is of that phase; bring the dataset back, or a later checkpoint"
        )
    return manifest
