"""What follows a bad step: it is left out; or the run goes back to a checkpoint and reads on behind the step; or it stops.

Going back happens in the same process and ends where a restart would: weights, optimizer, generators, carried states, schedule,
records and verdicts are the checkpoint's. Only the rows from there to the bad step are in quarantine, so the steps that are made
again, at the rates of their numbers, read the rows behind. Nothing of what was trained on quarantined rows stays, nor counts as
trained tokens.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llm.data import Batch
from llm.train.bad_steps import NOT_FINITE, BadStepsError, append
from llm.train.branch import starting_point
from llm.train.checkpoint import load_checkpoint
from llm.train.checkpoint_files import checkpoints, discard, step_of
from llm.train.diagnosis import diagnose, said
from llm.train.engine import StepResult
from llm.train.fragments import to_save
from llm.train.guard import PATIENCE
from llm.train.load import what_it_is
from llm.train.metrics import Writer
from llm.train.quarantine import NAME, documents_of, merged, quarantine_of, short, write_records
from llm.train.world import say
from llm.whole_file import write_text

if TYPE_CHECKING:
    from llm.train.loop import Run


class TooMany(NamedTuple):
    """A bad step. rows: of the stream, first and last + 1. why: what is bad. suspects: documents. law: that allows no such step."""

    rows: tuple[int, int]
    why: str
    suspects: dict[str, list[list[int]]]
    law: str


def bad_step(run: "Run", micro_batches: list[Batch], result: StepResult) -> bool:
    """Whether the run went back. All ranks call it together. Raises BadStepsError when it can go on in neither way."""
    world, why = run.world, run.bad_steps.why(run.step, result.loss, result.grad_norm)
    rows = run.batches.consumed - run.batches.batch, run.batches.consumed
    # the ranks whose own loss is not finite hold the cause; where there are none, any may
    guilty = world.gather(not bool(torch.isfinite(result.loss_sum)))
    suspects = documents_of(run.batches, *rows, world, guilty[world.rank] or not any(guilty))
    if world.first:
        append(run.folder.report, {"step": run.step, "rows": rows, "why": why, "documents": suspects})
    say(world, f"step {run.step} is left out: {why}; weights and optimizer stay as they were")
    law = run.bad_steps.too_many(run.step, why)
    if law is None:
        return False
    bad, newest, cannot = TooMany(rows, why, suspects, law), None, None
    if run.config.train.bad_steps.then == "rollback":
        run.guard.beat(run.step, "going back", PATIENCE)
        # one that is under way may be it
        run.saver.finish()
        newest, passed_over = starting_point(run.config, run.folder, world)
        cannot = hindrance(run, newest)
        say(world, *passed_over)
        if newest is not None and cannot is None:
            go_back(run, newest, bad)
            return True
    stop(run, micro_batches, bad, newest, cannot)
    return False


def hindrance(run: "Run", newest: Path | None) -> str | None:
    """Why the run cannot go back, in words."""
    if newest is None:
        return "there is no checkpoint yet (train.checkpoint_every)"
    if step_of(newest) >= run.step:
        return f"{newest}, which the run branches from, is ahead of it"
    if step_of(newest) < run.phase.first:
        return f"{newest} is of an earlier phase than train.phases[{run.phase.number}]"
    settings = run.config.train.bad_steps
    before = [record for record in run.quarantine if record["step"] > run.step - settings.window]
    if len(before) < settings.max_rollbacks:
        return None
    return f"train.bad_steps.max_rollbacks ({settings.max_rollbacks}) allows no more in {settings.window} steps"


def go_back(run: "Run", checkpoint: Path, bad: TooMany) -> None:
    """To a checkpoint, with the rows since then in quarantine. Raises CheckpointError."""
    world, batches = run.world, run.batches
    say(world, f"step {run.step} is {bad.law}: the run goes back to {checkpoint}")
    progress = load_checkpoint(run.engine, checkpoint, world)
    rows, stream = (progress["data"]["consumed"], batches.consumed), batches.stream.identity()
    record = {"step": run.step, "why": bad.why, "checkpoint": progress["step"], "rows": list(rows), "stream": stream}
    record["tokens"] = progress["tokens"]
    record |= {"suspects": bad.suspects, "documents": documents_of(batches, *rows, world)}
    run.quarantine = merged(run.quarantine, [record])
    if world.first:
        write_records(run.folder.report, run.quarantine)
        # of steps that are made again with other rows
        for newer in (path for path in checkpoints(run.folder.checkpoints) if step_of(path) > progress["step"]):
            discard(newer)
    world.barrier()
    batches.seek(rows[0], quarantine_of(run.quarantine, stream))
    before = what_it_is(checkpoint)[0].model
    if run.carried is not None and stream.items() <= progress["data"].items() and before == run.config.model:
        run.carried.load(checkpoint, world)
    elif run.carried is not None:
        # of the phase before, whose rows were cut in another way, or read by another model
        run.carried.states = [None] * len(run.carried.rows)
    run.bad_steps.restore(progress.get("bad_steps", {}))
    if progress["step"] == run.phase.first:
        # at the phase's border, as where it began
        run.bad_steps.spikes.restore({})
    say(world, f"rows {rows[0]} to {rows[1] - 1} are in quarantine and not read again: {run.folder.report / NAME} names them")
    run.step = progress["step"]
    run.meter.restart()
    run.sent.read()
    if run.writer is not None:
        run.writer.close()
        run.writer = Writer(run.folder, run.config.train.steps, run.step, run.config.train.tensorboard)


def stop(run: "Run", micro_batches: list[Batch], bad: TooMany, newest: Path | None, cannot: str | None) -> None:
    """Raise BadStepsError, with a diagnosis. newest: the checkpoint that the run would have gone back to; None: one is saved.
    cannot: why it does not go back where it should.
    """
    run.guard.beat(run.step, "the diagnosis", PATIENCE)
    where = save(run, last=True) if newest is None else newest
    kept = f"saved in {where}, as before this step" if newest is None else f"{where} is the newest checkpoint, untouched"
    record: dict[str, Any] = {"step": run.step, **bad._asdict()}
    path, found = run.folder.report / f"bad_step_{run.step}.json", ""
    if bad.why == NOT_FINITE:
        named = diagnose(run.engine, micro_batches, run.carried, run.world)
        record, found = record | named, f"; first not finite: {said(named)}"
    if run.world.first:
        write_text(path, json.dumps(record, indent=1) + "\n")
    if newest is not None:
        setting = " train.bad_steps.max_rollbacks=MORE"
    else:
        setting = "" if cannot else " train.bad_steps.skip=MORE" if "skip" in bad.law else " train.bad_steps.spike.at_once=false"
    hindered = f"; it cannot go back: {cannot}" if cannot else ""
    raise BadStepsError(
        f"step {run.step} is {bad.law}: {bad.why}{found} ({path}){hindered}; {kept}: go on with "
        f"`pretrain.py {run.folder.path}{setting}`, or start from these weights at a lower rate with init_from={where}"
    )


def save(run: "Run", last: bool) -> Path:
    """Begin a checkpoint of all that a run goes on from. All ranks call it together. Raises CheckpointError."""
    held = to_save(run.engine, run.world.rank, run.world.size)
    verdicts = {"bad_steps": run.bad_steps.state(), "quarantine": short(run.quarantine)}
    return run.saver.save(held, run.step, run.batches.state(), run.carried, last=last, verdicts=verdicts)
