"""Saving while training goes on: a thread copies to host memory, writes, syncs and hashes. Training waits for the copy alone, and
only before the next update (`copied`): forward and backward passes change nothing of what is saved.

That all ranks have written is agreed on through the all-reduce that every step makes (`votes`), at the first step after that whose
result the host reads; then the first rank seals the checkpoint and gives it its name. A kill before that costs this checkpoint
alone. Memory: one copy on the host of what a rank saves (for AdamW 12 bytes per parameter of its share), kept from save to save.
"""

import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llm.errors import CheckpointError
from llm.train import checkpoint_files as files
from llm.train.carried import Carried
from llm.train.config import RunConfig
from llm.train.fragments import Fragment
from llm.train.host_copy import HostCopy
from llm.train.phases import Phase, phases_of
from llm.train.run_folder import RunFolder
from llm.train.shards import Shard, state_shard, weight_shard
from llm.train.world import World

Sealed = dict[str, list]


class Saver:
    """Writes the checkpoints of a run's phase, one at a time. All ranks make the same calls.

    phase: None: the first. began: the rows at which it and those before it began.
    """

    def __init__(self, run: RunFolder, config: RunConfig, world: World, phase: Phase | None = None, began: Sequence[int] = (0,)):
        self.run, self.config, self.world = run, config, world
        self.phase, self.began = phase or phases_of(config)[0], began
        self._stall = 0.0
        # seconds from the beginning of a save until this rank had written its part, at most; None before the first
        self.longest: float | None = None
        self._host = HostCopy(world.device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copied = Event()
        self._copied.set()
        self._step = 0
        self._writing: Future[Sealed] | None = None
        # on the first rank: the last checkpoint's, which may go on until the next save
        self._publishing: Future[None] | None = None
        if world.first:
            files.tidy(run.checkpoints)
        world.barrier()

    def save(
        self,
        held: list[Fragment],
        step: int,
        data: dict[str, Any],
        carried: Carried | None = None,
        last: bool = False,
        verdicts: dict[str, Any] | None = None,
    ) -> Path:
        """Begin `checkpoints/step-N`; it is there on return where it is the last, or `train.checkpoint_async` is off.

        held: what this rank saves. data: the position of the data stream. verdicts: on steps so far, by what came of them.

        Raises:
            CheckpointError: this checkpoint, or the one before it, cannot be written.
        """
        began = time.perf_counter()
        self.finish()
        self._step = step
        texts = self._texts(step, data, verdicts or {}) if self.world.first else {}
        self._copied.clear()
        waits = last or not self.config.train.checkpoint_async
        # a copy also where tensors are on a GPU, from which they come fastest into this memory
        copies = not waits or self.world.device.type == "cuda"
        self._writing = self._thread.submit(self._write, self._temporary, self._shards(held, carried), texts, copies)
        if waits:
            self.finish()
        self._stall += time.perf_counter() - began
        return self._final

    def copied(self) -> None:
        """Wait until what is saved may change."""
        if not self._copied.is_set():
            began = time.perf_counter()
            self._copied.wait()
            self._stall += time.perf_counter() - began

    def votes(self) -> tuple[bool, bool]:
        """Of this rank, to be counted over all: (has written its part, has failed)."""
        jobs = [job for job in (self._writing, self._publishing) if job is not None and job.done()]
        failed = any(job.exception() is not None for job in jobs)
        return self._writing in jobs and not failed, failed

    def settle(self, written: int, failed: int) -> None:
        """Go on from the ranks' votes: publish what all have written. Raises CheckpointError when one has failed."""
        if failed:
            self._fail()
        if written == self.world.size:
            self._publish()

    def finish(self) -> None:
        """Wait until the checkpoint under way has its name. Raises CheckpointError."""
        if self._writing is not None:
            wait([self._writing])
            if not self.world.all(self._writing.exception() is None):
                self._fail()
            self._publish()
        if self._publishing is not None:
            wait([self._publishing])
        if not self.world.all(self._publishing is None or self._publishing.exception() is None):
            self._fail()

    def stall(self) -> dict[str, float]:
        """For the next record: seconds that saving took from training on this rank since the last one, if it did."""
        stall, self._stall = self._stall, 0.0
        return {"checkpoint_stall": stall} if stall else {}

    def close(self) -> None:
        """Give the memory back; a checkpoint under way is given up."""
        self._thread.shutdown()
        self._host.free()

    @property
    def _final(self) -> Path:
        return self.run.checkpoints / files.name_of(self._step)

    @property
    def _temporary(self) -> Path:
        return files.temporary_of(self.run.checkpoints, self._step)

    def _write(self, folder: Path, shards: dict[str, Shard], texts: dict[str, str], copies: bool) -> Sealed:
        began = time.perf_counter()
        try:
            if copies:
                shards = self._host.of(shards)
                self._copied.set()
            sealed = write(folder, shards, texts)
            self.longest = max(self.longest or 0.0, time.perf_counter() - began)
            return sealed
        finally:
            self._copied.set()

    def _publish(self) -> None:
        assert self._writing is not None
        parts = self.world.gather(self._writing.result())
        self._writing = None
        if self.world.first:
            sealed = {name: entry for part in parts for name, entry in part.items()}
            self._publishing = self._thread.submit(publish, self._temporary, self._final, sealed, self.phase)

    def _fail(self) -> None:
        jobs: list[Future] = [job for job in (self._writing, self._publishing) if job is not None]
        wait(jobs)
        error = next((error for job in jobs if (error := job.exception())), None)
        said = next(said for said in self.world.gather(None if error is None else str(error)) if said)
        if self.world.first:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if error is not None and not isinstance(error, OSError | SafetensorError):
            raise error
        raise CheckpointError(
            f"checkpoint {self._final} cannot be written ({said}); earlier ones are untouched: "
            f"make room, then resume with `pretrain.py {self.run.path}`"
        ) from error

    def _shards(self, held: list[Fragment], carried: Carried | None) -> dict[str, Shard]:
        rank = self.world.rank
        shards = {
            files.weights_of(rank): weight_shard(held),
            files.optimizer_of(rank): state_shard(held),
            files.generators_of(rank): Shard(rng_state(self.world.device), {}),
        }
        if carried is not None:
            shards[files.carried_of(rank)] = Shard(carried.tensors(), {})
        return shards

    def _texts(self, step: int, data: dict[str, Any], verdicts: dict[str, Any]) -> dict[str, str]:
        """The small files, which the first rank writes."""
        train, parallel, tokens = self.config.train, self.config.parallel, self.config.data.sequence_length
        progress = {
            "step": step,
            "tokens": self.phase.tokens_at(step),
            "phase": self.phase.number,
            "began": list(self.began),
            "data": data,
            "ranks": self.world.size,
            "zero": parallel.zero,
            "sequence": parallel.sequence,
            "precision": train.precision,
            "schedule": {"steps": train.steps, "batch": train.batch, "sequence_length": tokens, **asdict(train.schedule)},
            "versions": json.loads(self.run.versions.read_text()),
            **verdicts,
        }
        return {
            files.PROGRESS: json.dumps(progress, indent=1) + "\n",
            files.CONFIG: self.run.config.read_text(),
            files.TOKENIZER: self.run.tokenizer.read_text(),
        }


def write(folder: Path, shards: dict[str, Shard], texts: dict[str, str]) -> Sealed:
    """One rank's files, on the disk: name -> [size, hash]."""
    for name, (tensors, metadata) in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name, metadata)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return files.seal(folder, [*shards, *texts])


def publish(temporary: Path, final: Path, sealed: Sealed, phase: Phase) -> None:
    files.publish(temporary, final, sealed)
    train = phase.config.train
    files.keep_newest(final.parent, train.keep_last, train.keep_every, phase.borders)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of torch's generators on the host and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
