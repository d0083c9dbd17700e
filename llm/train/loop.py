"""The train loop: batches -> micro-steps -> optimizer step -> metrics -> validation -> checkpoint."""

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llm.data import Batches, HeldOutBatches, Manifest
from llm.errors import DataError
from llm.ops import compiled
from llm.train.bad_steps import BadSteps
from llm.train.branch import starting_point
from llm.train.carried import Carried
from llm.train.checkpoint import load_checkpoint
from llm.train.checkpoint_files import name_of
from llm.train.config import RunConfig, data_ranks, micro_batch_of, repeated_reductions
from llm.train.engine import create_engine, optimizer_step
from llm.train.exits import DONE, STOPPED, Outcome
from llm.train.grid import leave, place, sequence_ranks, unscored_rows
from llm.train.guard import PATIENCE, Guard
from llm.train.init_from import start_from
from llm.train.metrics import Meter, Writer, create_meter, read_metrics
from llm.train.phases import Phase, Start, start_of
from llm.train.plot import plot_loss
from llm.train.quarantine import Record, known, quarantine_of, said
from llm.train.rollback import bad_step, save
from llm.train.run_folder import RunFolder
from llm.train.save import Saver
from llm.train.scheduled import Evaluation
from llm.train.sent import Sent
from llm.train.startup import StartUp
from llm.train.validate import held_out_batches, validate
from llm.train.world import World, say


@dataclass
class Run:
    """All that the loop holds. carried: states from step to step, if they are. held_out: None when the dataset has no validation
    split. evaluate: what `train.evaluate` asks for. writer: on the first rank. quarantine: rows that are never read, and why.
    """

    phase: Phase
    folder: RunFolder
    world: World
    engine: Any
    batches: Batches
    carried: Carried | None
    held_out: HeldOutBatches | None
    evaluate: Evaluation | None
    meter: Meter
    sent: Sent
    writer: Writer | None
    saver: Saver
    guard: Guard
    bad_steps: BadSteps
    quarantine: list[Record]
    step: int

    @property
    def config(self) -> RunConfig:
        """As it holds in the phase."""
        return self.phase.config


def train(
    phases: Sequence[Phase],
    folder: RunFolder,
    world: World,
    manifests: Sequence[Manifest | None],
    guard: Guard,
    startup: StartUp,
    evaluations: Sequence[Evaluation | None] = (None,),
) -> Outcome:
    """Train from scratch or from the newest whole checkpoint, phase after phase, to the last step or until a rank is to stop.

    The process group is up, phases are checked, their precision resolved. manifests, evaluations: of each phase.
    Raises DataError, CheckpointError.
    """
    config = phases[0].config
    while True:
        checkpoint, passed_over = starting_point(config, folder, world)
        say(world, *passed_over)
        start = start_of(phases, manifests, checkpoint)
        outcome = train_phase(start, folder, world, guard, startup, evaluations[start.phase.number])
        if outcome.status != DONE or outcome.step == config.train.steps:
            return outcome
        guard.beat(outcome.step + 1, "the next phase", PATIENCE)
        # an engine's parts hold each other
        gc.collect()
        torch.cuda.empty_cache()


def train_phase(
    start: Start,
    folder: RunFolder,
    world: World,
    guard: Guard,
    startup: StartUp,
    evaluate: Evaluation | None,
) -> Outcome:
    """To the end of a phase, or until a rank is to stop."""
    phase, stream, checkpoint, config = start.phase, start.stream, start.checkpoint, start.phase.config
    ranks = sequence_ranks(config, world)
    engine = create_engine(config, world, ranks, folder)
    progress = load(engine, start, folder, world)
    if phase.of > 1:
        say(world, str(phase))
    last_row = start.began[-1] + (phase.last - phase.first) * config.train.batch
    say(world, *stream.repetitions(last_row), *unscored_rows(config, world.size))
    say(world, *repeated_reductions(config, world.size))
    lines, bad = known(folder, checkpoint, progress, world), BadSteps(config.train.bad_steps)
    bad.restore(progress.get("bad_steps", {}))
    if start.step == phase.first:
        # what was usual under other data or another context is not here
        bad.spikes.restore({})
    say(world, *said(lines))
    rank, part = place(config, world)
    readers, micro_batch = data_ranks(config, world.size), micro_batch_of(config, world.size)
    quarantine = quarantine_of(lines, stream.identity())
    batches = Batches(stream, config.train.batch, rank, readers, micro_batch, start.consumed, part, quarantine)
    saver = Saver(folder, config, world, phase, start.began)
    try:
        writer = Writer(folder, config.train.steps, start.step, config.train.tensorboard) if world.first else None
        held_out = held_out_batches(config, world, stream.manifest)
        carried = Carried.of(config, batches)
        if carried is not None and checkpoint is not None and start.same_states:
            carried.load(checkpoint, world)
        meter, sent = create_meter(phase, world), Sent(world, ranks)
        parts = phase, folder, world, engine, batches, carried, held_out, evaluate, meter, sent, writer, saver, guard, bad, lines
        startup.done("load")
        outcome = loop(Run(*parts, start.step), startup)
        engine.destroy()
        leave(ranks)
        return outcome
    except DataError as error:
        # the first rank, which speaks for all, may never read the damaged shard
        if not world.first:
            print(f"error on rank {world.rank}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        batches.close()
        saver.close()


def load(engine: Any, start: Start, folder: RunFolder, world: World) -> dict[str, Any]:
    """What the engine begins with, and the progress that the checkpoint knows of, if there is one. Raises CheckpointError."""
    config = start.phase.config
    if start.checkpoint is not None:
        began = time.perf_counter()
        progress = load_checkpoint(engine, start.checkpoint, world)
        where = f"{start.checkpoint}, with sequence {start.consumed} of its data"
        say(world, f"resuming from {where}, loaded in {time.perf_counter() - began:.1f} s")
        return progress
    if config.init_from is not None:
        say(world, f"starting from the weights of {start_from(engine, config, folder, world)}")
    return {}


def loop(run: Run, startup: StartUp) -> Outcome:
    """Steps until the phase's last one, or until a rank is to stop."""
    settings, stop, first = run.config.train, run.guard.stop, run.step + 1
    outcome = Outcome(DONE, run.step, f"step {run.step} of {settings.steps}", str(run.folder.path))
    slowest = 0.0
    while run.step < run.phase.last:
        run.step += 1
        last = run.step == run.phase.last
        patience = PATIENCE if run.step == first else 1
        run.guard.beat(run.step, "reading", patience)
        waiting = time.perf_counter()
        micro_batches = next(run.batches)
        data_wait = time.perf_counter() - waiting
        lr = run.phase.rate(run.step)
        # on a GPU the votes are read at logged steps alone
        stop.check_time(slowest * (settings.log_every if run.world.device.type == "cuda" else 1), run.saver.longest)
        reason = stop.reason
        votes, copied = (reason is not None, stop.out_of_time, *run.saver.votes()), run.saver.copied
        limits = run.bad_steps.limits(run.step)
        run.guard.beat(run.step, "the update", patience)
        with run.sent:
            result = optimizer_step(
                run.engine, micro_batches, lr, settings.clip, run.world, votes, run.carried, copied, run.step, limits
            )
        run.meter.add(result, data_wait)
        saving = last or due(run.step, settings.checkpoint_every)
        logging = saving or due(run.step, settings.log_every)
        # a GPU is asked only where the loop waits for it anyway; the host's own tensors cost nothing to read
        stops, late, written, failed = result.votes.tolist() if logging or run.world.device.type == "cpu" else (0, 0, 0, 0)
        run.saver.settle(written, failed)
        if not result.bad:
            run.bad_steps.good(result.loss, result.grad_norm)
        elif bad_step(run, micro_batches, result):
            # at an earlier step, with the data behind
            continue
        stopping = stops > 0
        validating = last or due(run.step, settings.validate_every)
        evaluating = run.evaluate is not None and due(run.step, settings.evaluate.every)
        if logging or stopping or validating or evaluating:
            report(run, lr, validating, evaluating)
        if saving or stopping:
            run.guard.beat(run.step, "a checkpoint", PATIENCE)
            save(run, last=last or stopping)
        if stopping and run.step < settings.steps:
            outcome = stopped(run, reason, late > 0)
            break
        outcome = replace(outcome, step=run.step, sentence=f"step {run.step} of {settings.steps}")
        if run.step == first:
            startup.first_step(compiled.spent, run.folder.report, run.world)
        else:
            slowest = max(slowest, time.perf_counter() - waiting)
        if logging or validating or evaluating:
            run.meter.skip()
    if run.writer is not None:
        run.writer.close()
    return outcome


def stopped(run: Run, reason: str | None, out_of_time: bool) -> Outcome:
    """All ranks say why, whichever had a reason. The checkpoint is written."""
    reason = next(each for each in run.world.gather(reason) if each)
    where = f"saved in {run.folder.checkpoints / name_of(run.step)}; go on with `pretrain.py {run.folder.path}`"
    sentence = f"stopped at step {run.step} on request ({reason}), {where}"
    return Outcome(STOPPED, run.step, sentence, str(run.folder.path), out_of_time=out_of_time)


def report(run: Run, lr: float, validating: bool, evaluating: bool) -> None:
    """Write a record, with validation and evaluation where they are due; then the loss curve is drawn anew."""
    record = run.meter.read(run.step, lr) | run.sent.read() | run.saver.stall()
    if run.config.data.on_corrupt == "substitute":
        # damaged sequences that other ones stand for, of all ranks since this start
        record["substituted"] = run.world.sum(torch.tensor(run.batches.stream.substituted, device=run.world.device)).item()
    if run.quarantine:
        record |= {"rollbacks": len(run.quarantine), "quarantined_sequences": len(run.batches.quarantine)}
    if validating and run.held_out is not None:
        record |= validate(run.engine, run.held_out, run.world, lambda: run.guard.beat(run.step, "validation", PATIENCE))
    if evaluating and run.evaluate is not None:
        run.guard.beat(run.step, "evaluation", PATIENCE, run.config.train.evaluate.minutes)
        record |= run.evaluate(run.engine, run.step)
    if run.writer is None:
        return
    run.writer.write(record)
    if validating:
        rollbacks = [record["tokens"] for record in run.quarantine]
        plot_loss(read_metrics(run.folder), run.folder.report / "loss.png", run.config.name, rollbacks)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
