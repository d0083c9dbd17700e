"""A step of one rank before there is a rank: the most bytes that it holds, and what it sends to those that share its sequences.

Each kind of layer runs forwards and backwards once, on tensors without values (FakeTensorMode) and in a process group that sends
nothing; the layers are then stacked on paper. What DeepSpeed adds is arithmetic (`llm/train/engine_bytes.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llm.docs import Docs
from llm.init import cast_model
from llm.model import Decoder
from llm.ops.cross_entropy import cross_entropy
from llm.parallel import Ranks
from llm.parallel.traffic import Traffic
from llm.train.config import RunConfig, accumulation_of, data_ranks, micro_batch_of
from llm.train.engine_bytes import EngineBytes, engine_bytes
from llm.train.memory import LiveBytes
from llm.train.precision import casts_model, gathered_in_bf16


class Part(NamedTuple):
    """Of one layer, or what comes before or behind all, in bytes and for one micro-batch.

    kept: alive from its forward to its backward pass. forward, backward: at work, the most beyond what is alive when it begins.
    gradients: left behind, of its parameters. sent: by collective, to the ranks that share the sequence.
    """

    name: str
    kept: int
    forward: int
    backward: int
    gradients: int
    sent: Counter


@dataclass(frozen=True)
class Peak:
    """Bytes of a rank at the moment when it holds the most. where: what it is doing then, whose own bytes are `at_work`."""

    parameters: int
    optimizer: int
    buffers: int
    gradients: int
    activations: int
    at_work: int
    where: str

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.buffers + self.gradients + self.activations + self.at_work


class Rehearsal(NamedTuple):
    """peak: of the rank that holds the most. sent: bytes per step, by collective, among all ranks that share sequences."""

    peak: Peak
    sent: Counter


def rehearse(config: RunConfig, world_size: int) -> Rehearsal:
    """Of a checked config whose precision is resolved. No process group may be up."""
    size = config.parallel.sequence
    # of the ranks that share a sequence, those between the first and the last do alike
    alike = {0: 1, 1: size - 2, size - 1: 1} if size > 2 else dict.fromkeys(range(size), 1)
    found = {rank: rehearse_rank(config, world_size, rank) for rank in alike}
    sent: Counter = Counter()
    for rank, times in alike.items():
        for collective, each in found[rank].sent.items():
            sent[collective] += each * times * data_ranks(config, world_size)
    return Rehearsal(max((one.peak for one in found.values()), key=lambda peak: peak.total), sent)


def rehearse_rank(config: RunConfig, world_size: int, rank: int) -> Rehearsal:
    """Of one rank of those that share a sequence."""
    with fake_ranks(config, rank) as ranks, FakeTensorMode(), LiveBytes() as live, Traffic() as traffic:
        decoder = _decoder(config)
        parts = list(_parts(decoder, config, micro_batch_of(config, world_size), ranks, live, traffic))
    accumulation = accumulation_of(config, world_size)
    engine = engine_bytes(config, decoder, world_size, accumulation)
    sent: Counter = Counter()
    for part in parts:
        for collective, each in part.sent.items():
            sent[collective] += each * accumulation
    return Rehearsal(_peak(parts, engine, accumulation), sent)


@contextmanager
def fake_ranks(config: RunConfig, rank: int) -> Iterator[Ranks | None]:
    """The ranks that share a sequence, of which only this one is there, and which take and give without a wire."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    size = config.parallel.sequence
    if size == 1:
        yield None
        return
    assert not dist.is_initialized(), "rehearsed where a process group is up"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield Ranks(rank, size, dist.group.WORLD, config.parallel.mode, states=config.data.packing == "contiguous")
    finally:
        dist.destroy_process_group()


def _decoder(config: RunConfig) -> Decoder:
    decoder = Decoder(config.model)
    if casts_model(config):
        cast_model(decoder)
    elif config.train.precision == "bf16":
        for parameter in gathered_in_bf16(decoder):
            parameter.data = parameter.data.bfloat16()
    return decoder


def _parts(
    decoder: Decoder, config: RunConfig, rows: int, ranks: Ranks | None, live: LiveBytes, traffic: Traffic
) -> Iterator[Part]:
    length = config.data.sequence_length
    tokens = length // (1 if ranks is None else ranks.size)
    docs = Docs(torch.zeros(rows, length, dtype=torch.bool))
    # made once for all layers, so no one's
    shared = docs.id_BT, docs.since_start_BT
    assert all(x.shape == docs.shape for x in shared)
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    autocast = config.train.precision == "bf16" and not casts_model(config)

    def measured(name: str, run: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor) -> Part:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return _measure(name, run, parameters, x, live, traffic)

    first = measured("embedding", lambda _: F.embedding(ids, decoder.embedding), [decoder.embedding], ids)
    yield first
    with torch.no_grad():
        x_BTD = F.embedding(ids, decoder.embedding)
    found: dict[str, Part] = {}
    for name, block in zip(config.model.layer_names(), decoder.blocks, strict=True):
        if name not in found:
            kind, run = config.model.layers[name].mixer.kind, _block(block, config, docs, ranks)
            found[name] = measured(f"layer {name} ({kind})", run, list(block.parameters()), x_BTD)
        yield found[name]
    head = decoder.embedding if decoder.head is None else decoder.head

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(decoder.norm(x).flatten(0, 1), head.to(x.dtype), ids.flatten())[0]

    yield measured("loss and logits", loss, [head, *decoder.norm.parameters()], x_BTD)


def _block(block: Any, config: RunConfig, docs: Docs, ranks: Ranks | None) -> Callable[[Tensor], Tensor]:
    carried = config.data.packing == "contiguous"

    def run(x_BTD: Tensor) -> Tensor:
        state = block.mixer.init_state(len(x_BTD), x_BTD.device, x_BTD.dtype) if carried else None
        if config.train.activation_checkpointing:
            return checkpoint(block, x_BTD, state, docs, ranks, use_reentrant=False)[0]
        return block(x_BTD, state, docs, ranks)[0]

    return run


def _measure(
    name: str, run: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor, live: LiveBytes, traffic: Traffic
) -> Part:
    x = x.detach().requires_grad_(x.is_floating_point())
    for parameter in parameters:
        parameter.grad = None
    sent, before = Counter(traffic.bytes), live.now
    live.restart()
    y = run(x)
    kept, forward = live.now - before, live.peak - before
    live.restart()
    beginning = live.now
    y.backward(torch.ones_like(y))
    backward = live.peak - beginning
    del y
    gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    for parameter in parameters:
        parameter.grad = None
    by_collective = Counter({key: n - sent[key] for key, n in traffic.bytes.items()})
    return Part(name, kept, forward, backward, gradients, Counter({c: n for (_, c), n in by_collective.items()}))


def _peak(parts: list[Part], engine: EngineBytes, accumulation: int) -> Peak:
    """Walks forwards and backwards through a micro-batch, the last of a step, when earlier ones have left their gradients."""
    peaks: list[Peak] = []

    def at(gradients: int, activations: int, at_work: int, where: str, buffers: int = engine.backward) -> None:
        peaks.append(Peak(engine.parameters, engine.optimizer, engine.always + buffers, gradients, activations, at_work, where))

    gradients, activations = engine.waiting if accumulation > 1 else 0, 0
    for part in parts:
        at(gradients, activations, part.forward, f"forward, {part.name}", 0)
        activations += part.kept
    for part in reversed(parts):
        at(gradients, activations, part.backward, f"backward, {part.name}")
        activations -= part.kept
        gradients += part.gradients * engine.builds_up
    at(gradients, 0, engine.step, "reducing gradients and stepping")
    return max(peaks, key=lambda peak: peak.total)
