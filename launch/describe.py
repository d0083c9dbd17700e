"""`python launch/describe.py FILE.yaml... key.path=value... [ranks=N]`: what a run costs, from its config alone.

Parameters, FLOPs and state by layer; how sequences cross ranks; the most bytes that a rank holds, of `ranks` (by default as many as
share a sequence). The last is found by a step on tensors without values: seconds, no memory, no GPU. Of a run with phases
(`train.phases`) a row for each, and the rest for the phase in which a rank holds the most. `--kernels [sm_90]` before
the words prints what GPU kernels can, and which would run the config's layers.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.table import Table

from launch.kernel_table import show
from llm.cost import Cost, model_cost
from llm.errors import BraidError, ConfigError
from llm.mixers.ops import ops_of
from llm.parallel.plan import choose, sent, sent_back
from llm.train.config import RunConfig, load_config, micro_batch_of, naming
from llm.train.laws import check_ranks
from llm.train.phases import Phase, phases_of
from llm.train.precision import casts_model
from llm.train.quarantine import read_records, said
from llm.train.rehearsal import Rehearsal, rehearse
from llm.train.run_folder import RunFolder
from llm.train.teacher import teacher_config

RANKS = "ranks="


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        if words[0] == "--kernels":
            show(words[1:])
            return 0
        phases = phases_of(load_config([word for word in words if not word.startswith(RANKS)]))
        ranks = ranks_of(words, max(phase.config.parallel.sequence for phase in phases))
        for phase in phases:
            with naming(phase.number) if phase.of > 1 else nullcontext():
                check_ranks(phase.config, ranks)
                if phase.config.data.sequence_length < 1:
                    raise ConfigError(f"data.sequence_length ({phase.config.data.sequence_length}) must be at least 1")
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with Console(stderr=True).status("rehearsing a step"):
        rehearsals = [rehearse(in_bf16(phase.config), ranks) for phase in phases]
    rehearsal, phase = max(zip(rehearsals, phases, strict=True), key=lambda each: each[0].peak.total)
    config = in_bf16(phase.config)
    if phase.of > 1:
        Console().print(in_turn(phases, rehearsals))
        Console().print(f"in phase {phase.number}:", highlight=False)
    Console().print(table(config))
    for sentence in said(read_records(RunFolder.of(config).report)):
        Console().print(sentence, highlight=False)
    if config.parallel.sequence > 1:
        Console().print(crossings(config))
    Console().print(memory(config, ranks, rehearsal))
    if rehearsal.sent:
        each = ", ".join(f"{name} {size:,}" for name, size in sorted(rehearsal.sent.items()))
        Console().print(f"sent per step among ranks that share sequences, all together, in bytes: {each}", highlight=False)
    return 0


def ranks_of(words: list[str], default: int) -> int:
    """The last `ranks=N` of the words. Raises ConfigError."""
    given = [word.removeprefix(RANKS) for word in words if word.startswith(RANKS)]
    if given and not (given[-1].isascii() and given[-1].isdigit() and int(given[-1])):
        raise ConfigError(f"ranks ({given[-1]}) is how many processes train, one per GPU; use a number from 1 up")
    return int(given[-1]) if given else default


def in_bf16(config: RunConfig) -> RunConfig:
    """`auto` as a GPU decides it, wherever this is read."""
    if config.train.precision != "auto":
        return config
    precision: Literal["fp32", "bf16"] = "bf16" if config.parallel.zero else "fp32"
    return replace(config, train=replace(config.train, precision=precision))


def in_turn(phases: list[Phase], rehearsals: list[Rehearsal]) -> Table:
    """A row per phase."""
    shown = Table(title=f"phases: {phases[-1].tokens_at(phases[-1].last):,} tokens", title_justify="left", box=None)
    for heading in ("phase", "steps", "tokens", "batch", "rate", "peak bytes"):
        shown.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=heading != "phase")
    for phase, rehearsal in zip(phases, rehearsals, strict=True):
        steps = phase.last - phase.first
        shown.add_row(
            f"{phase.number} {phase.name}",
            f"{steps:,}",
            f"{steps * phase.tokens_per_step:,}",
            f"{phase.config.train.batch:,} x {phase.config.data.sequence_length:,}",
            f"{phase.rate(phase.first + 1):.1e} to {phase.rate(phase.last):.1e}",
            f"{rehearsal.peak.total:,}",
        )
    return shown


def table(config: RunConfig) -> Table:
    """A row per layer, the rest of the model, and the sum."""
    context = config.data.sequence_length
    shown = Table(title=f"{config.name}: per sequence of {context} tokens, state in float32", title_justify="left")
    for heading in ("layer", "mixer", "parameters", "forward FLOPs/token", "state bytes"):
        shown.add_column(heading, justify="left" if heading in ("layer", "mixer") else "right")
    upto = [model_cost(replace(config.model, depth=depth), context) for depth in range(config.model.depth + 1)]
    shown.add_row("embedding, head, norm", "", *_numbers(upto[0]), end_section=True)
    for i, name in enumerate(config.model.layer_names()):
        kind = config.model.layers[name].mixer.kind
        shown.add_row(f"{i} {name}", kind, *_numbers(upto[i + 1] + _negative(upto[i])), end_section=i + 1 == config.model.depth)
    shown.add_row("all", "", *_numbers(upto[-1]))
    return shown


def crossings(config: RunConfig) -> Table:
    """A row per op of each kind of layer: how it crosses from rank to rank, and what that sends."""
    size, length = config.parallel.sequence, config.data.sequence_length
    shown = Table(title=f"sequences split over {size} ranks ({config.parallel.mode}), bfloat16 streams", title_justify="left")
    for heading in ("layer", "op", "heads", "crosses by", "bytes sent per token, both ways"):
        shown.add_column(heading, justify="left" if heading in ("layer", "op", "crosses by") else "right")
    for name, layer in config.model.layers.items():
        for op in ops_of(layer.mixer, config.model.width):
            crossing = choose(op, size, length // size, config.parallel.mode)
            each = sum(way(op, crossing, size, length // size) for way in (sent, sent_back)) / length
            shown.add_row(f"{name} ({layer.mixer.kind})", f"{op.name} ({op.family})", str(op.heads), crossing, f"{each:,.1f}")
    return shown


def memory(config: RunConfig, ranks: int, rehearsal: Rehearsal) -> Table:
    """What a rank holds at the moment when it holds the most."""
    peak, train = rehearsal.peak, config.train
    how = f"ZeRO {config.parallel.zero}, {train.precision}, {micro_batch_of(config, ranks)} sequences at once"
    how += ", activation checkpointing" * train.activation_checkpointing
    shown = Table(title=f"peak bytes of each of {ranks} rank(s): {how}", title_justify="left")
    shown.add_column("what")
    shown.add_column("bytes", justify="right")
    rows = {
        "parameters": peak.parameters,
        "optimizer states, float32 masters": peak.optimizer,
        "gradients": peak.gradients,
        "activations kept for the backward pass": peak.activations,
        f"at work then: {peak.where}": peak.at_work,
        "buffers of ZeRO": peak.buffers,
    }
    teacher = teacher_bytes(config)
    if teacher:
        rows["weights of the teacher (train.distill)"] = teacher
    for name, size in rows.items():
        shown.add_row(name, f"{size:,}", end_section=name.startswith("buffers"))
    shown.add_row("all", f"{peak.total + teacher:,}")
    return shown


def teacher_bytes(config: RunConfig) -> int:
    """What the teacher's weights take on every rank, as far as its folder is here."""
    path = config.train.distill.teacher
    if path is None:
        return 0
    if not Path(path).exists():
        return 0
    model = teacher_config(Path(path))
    return model_cost(model, config.data.sequence_length).parameters * (2 if casts_model(config) else 4)


def _negative(cost: Cost) -> Cost:
    return Cost(-cost.parameters, -cost.flops, -cost.state_bytes)


def _numbers(cost: Cost) -> list[str]:
    return [f"{cost.parameters:,}", f"{cost.flops:,.0f}", f"{cost.state_bytes:,}"]


if __name__ == "__main__":
    sys.exit(main())
