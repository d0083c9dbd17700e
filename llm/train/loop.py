"""The train loop: batches -> micro-steps -> optimizer step -> metrics -> validation -> checkpoint."""

import json
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from llm.data import Batch, Batches, HeldOutBatches, Manifest, TokenStream
from llm.errors import ConfigError, DataError
from llm.ops import compiled
from llm.train.bad_steps import BadSteps, BadStepsError, append
from llm.train.branch import branch_point
from llm.train.carried import Carried
from llm.train.checkpoint import load_checkpoint, newest_whole
from llm.train.checkpoint_files import name_of
from llm.train.config import RunConfig, data_ranks, micro_batch_of, repeated_reductions
from llm.train.diagnosis import diagnose, said
from llm.train.engine import create_engine, optimizer_step
from llm.train.exits import DONE, STOPPED, Outcome
from llm.train.fragments import to_save
from llm.train.grid import place, sequence_ranks, unscored_rows
from llm.train.guard import PATIENCE, Guard
from llm.train.init_from import start_from
from llm.train.metrics import Meter, Writer, create_meter, read_metrics
from llm.train.plot import plot_loss
from llm.train.run_folder import RunFolder
from llm.train.save import Saver
from llm.train.schedule import learning_rate
from llm.train.scheduled import Evaluation
from llm.train.sent import Sent
from llm.train.startup import StartUp
from llm.train.validate import held_out_batches, validate
from llm.train.whole_file import write_text
from llm.train.world import World, say


@dataclass
class Run:
    """All that the loop holds. carried: states from step to step, if they are. held_out: None when the dataset has no validation
    split. evaluate: what `train.evaluate` asks for. writer: on the first rank.
    """

    config: RunConfig
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
    step: int


def train(
    config: RunConfig,
    folder: RunFolder,
    world: World,
    manifest: Manifest,
    guard: Guard,
    startup: StartUp,
    evaluate: Evaluation | None = None,
) -> Outcome:
    """Train from scratch or from the newest whole checkpoint, to the last step or until a rank is to stop.

    The process group is up, `config` is checked, its precision resolved. Raises DataError, CheckpointError.
    """
    checkpoint, passed_over = newest_whole(folder.checkpoints, world)
    if checkpoint is None and config.branch_from is not None:
        checkpoint, passed_over = branch_point(config.branch_from, world)
    ranks = sequence_ranks(config, world)
    engine = create_engine(config, world, ranks, folder)
    stream = TokenStream(manifest, "train", config.data, config.seed, config.train.batch)
    step, consumed = 0, 0
    if checkpoint is not None:
        began = time.perf_counter()
        progress = load_checkpoint(engine, checkpoint, world)
        stream.check_state(progress["data"])
        step, consumed = progress["step"], progress["data"]["consumed"]
        where = f"{checkpoint}, with sequence {consumed} of its data"
        say(world, *passed_over, f"resuming from {where}, loaded in {time.perf_counter() - began:.1f} s")
        if step > config.train.steps:
            raise ConfigError(f"train.steps ({config.train.steps}) must be at least {step}, the step of {checkpoint}; raise it")
    elif config.init_from is not None:
        say(world, f"starting from the weights of {start_from(engine, config, folder, world)}")
    say(world, *stream.repetitions(config.train.steps * config.train.batch), *unscored_rows(config, world.size))
    say(world, *repeated_reductions(config, world.size))
    rank, part = place(config, world)
    readers, micro_batch = data_ranks(config, world.size), micro_batch_of(config, world.size)
    batches = Batches(stream, config.train.batch, rank, readers, micro_batch, consumed, part)
    saver = Saver(folder, config, world)
    try:
        writer = Writer(folder, config.train.steps, step, config.train.tensorboard) if world.first else None
        held_out = held_out_batches(config, world, manifest)
        carried = Carried.of(config, batches)
        if carried is not None and checkpoint is not None:
            carried.load(checkpoint, world)
        meter, sent = create_meter(config, world), Sent(world, ranks)
        bad = BadSteps(config.train.bad_steps)
        run = Run(config, folder, world, engine, batches, carried, held_out, evaluate, meter, sent, writer, saver, guard, bad, step)
        startup.done("load")
        return loop(run, startup)
    except DataError as error:
        # the first rank, which speaks for all, may never read the damaged shard
        if not world.first:
            print(f"error on rank {world.rank}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        batches.close()
        saver.close()


def loop(run: Run, startup: StartUp) -> Outcome:
    """Steps until the last one, or until a rank is to stop."""
    settings, stop, first = run.config.train, run.guard.stop, run.step + 1
    outcome = Outcome(DONE, run.step, f"step {run.step} of {settings.steps}", str(run.folder.path))
    slowest = 0.0
    while run.step < settings.steps:
        run.step += 1
        last = run.step == settings.steps
        patience = PATIENCE if run.step == first else 1
        run.guard.beat(run.step, "reading", patience)
        waiting = time.perf_counter()
        micro_batches = next(run.batches)
        data_wait = time.perf_counter() - waiting
        lr = learning_rate(settings.schedule, settings.optimizer.lr, run.step, settings.steps)
        # on a GPU the votes are read at logged steps alone
        stop.check_time(slowest * (settings.log_every if run.world.device.type == "cuda" else 1), run.saver.longest)
        reason = stop.reason
        votes, copied = (reason is not None, stop.out_of_time, *run.saver.votes()), run.saver.copied
        run.guard.beat(run.step, "the update", patience)
        with run.sent:
            result = optimizer_step(run.engine, micro_batches, lr, settings.clip, run.world, votes, run.carried, copied, run.step)
        run.meter.add(result, data_wait)
        saving = last or due(run.step, settings.checkpoint_every)
        logging = saving or due(run.step, settings.log_every)
        # a GPU is asked only where the loop waits for it anyway; the host's own tensors cost nothing to read
        stops, late, written, failed = result.votes.tolist() if logging or run.world.device.type == "cpu" else (0, 0, 0, 0)
        run.saver.settle(written, failed)
        if result.bad:
            left_out(run, micro_batches)
        stopping = stops > 0
        validating = last or due(run.step, settings.validate_every)
        evaluating = run.evaluate is not None and due(run.step, settings.evaluate.every)
        if logging or stopping or validating or evaluating:
            report(run, lr, validating, evaluating)
        if saving or stopping:
            run.guard.beat(run.step, "a checkpoint", PATIENCE)
            held = to_save(run.engine, run.world.rank, run.world.size)
            run.saver.save(held, run.step, run.batches.state(), run.carried, last=last or stopping)
        if stopping and not last:
            outcome = stopped(run, reason, late > 0)
            break
        outcome = replace(outcome, step=run.step, sentence=f"step {run.step} of {settings.steps}")
        if run.step == first:
            startup.done("first step", kernels=compiled.spent)
            startup.report(run.folder.report, run.world)
        else:
            slowest = max(slowest, time.perf_counter() - waiting)
        if logging or validating or evaluating:
            run.meter.skip()
    if run.writer is not None:
        run.writer.close()
    return outcome


def left_out(run: Run, micro_batches: list[Batch]) -> None:
    """Tell of a bad step. Raises BadStepsError, with a checkpoint and a diagnosis, when it is one too many."""
    rows = run.batches.consumed - run.config.train.batch, run.batches.consumed
    if run.world.first:
        append(run.folder.report, run.step, rows)
    say(run.world, f"step {run.step} is left out: its gradient is not finite, weights and optimizer stay as they were")
    if not run.bad_steps.too_many(run.step):
        return
    run.guard.beat(run.step, "the diagnosis", PATIENCE)
    where = run.saver.save(
        to_save(run.engine, run.world.rank, run.world.size), run.step, run.batches.state(), run.carried, last=True
    )
    found = diagnose(run.engine, micro_batches, run.carried, run.world)
    path = run.folder.report / f"bad_step_{run.step}.json"
    if run.world.first:
        write_text(path, json.dumps({"step": run.step, "rows": rows, **found}, indent=1) + "\n")
    settings = run.config.train.bad_steps
    raise BadStepsError(
        f"step {run.step} is one more with a gradient that is not finite than train.bad_steps.skip ({settings.skip}) allows in "
        f"{settings.window} steps; first not finite: {said(found)} ({path}); saved in {where}, with weights that are: lower the "
        f"rate or mend the data of rows {rows[0]} to {rows[1] - 1}, then go on with `pretrain.py {run.folder.path}`"
    )


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
    if validating and run.held_out is not None:
        record |= validate(run.engine, run.held_out, run.world, lambda: run.guard.beat(run.step, "validation", PATIENCE))
    if evaluating and run.evaluate is not None:
        run.guard.beat(run.step, "evaluation", PATIENCE, run.config.train.evaluate.minutes)
        record |= run.evaluate(run.engine, run.step)
    if run.writer is None:
        return
    run.writer.write(record)
    if validating:
        plot_loss(read_metrics(run.folder), run.folder.report / "loss.png", run.config.name)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
