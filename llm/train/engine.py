"""DeepSpeed's engine around the decoder, and one optimizer step of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import Tensor

from llm.compile import compile_blocks
from llm.data import Batch
from llm.model import Decoder
from llm.parallel import Ranks
from llm.train.carried import Carried
from llm.train.config import RunConfig
from llm.train.deepspeed_config import LossOnly, deepspeed_config
from llm.train.gate import CLOSED, Gate
from llm.train.optimizer import create_optimizer, set_rates
from llm.train.precision import prepare
from llm.train.report import report_parameters
from llm.train.run_folder import RunFolder
from llm.train.spikes import NO_LIMITS, Limits
from llm.train.teacher import distillation_of
from llm.train.world import World


class StepResult(NamedTuple):
    """loss_sum: nats of this rank. scored: labels of all ranks. grad_norm: global, unclipped. votes: yeses of all ranks.
    z_sum: with a z-loss, log^2 Z summed over this rank's scored labels. bad: the gradient was not finite, or a limit was passed,
    and nothing is updated. loss: nats per label of all ranks, where it has a limit.
    """

    loss_sum: Tensor
    scored: Tensor
    grad_norm: Tensor | float
    votes: Tensor
    z_sum: Tensor | None = None
    bad: bool = False
    loss: Tensor | None = None


def create_engine(config: RunConfig, world: World, ranks: Ranks | None = None, folder: RunFolder | None = None) -> Any:
    """The engine with initial weights, which depend on the seed alone. ranks: those that share sequences; None: none does.
    folder: where the parameters' report goes.
    """
    decoder = Decoder.create(config.model, config.seed, world.device)
    decoder.checkpoint_activations = config.train.activation_checkpointing
    if config.train.compile_blocks:
        compile_blocks(decoder)
    prepare(decoder, config)
    distillation = distillation_of(config, world.device)
    optimizer = create_optimizer(
        config.train.optimizer,
        decoder,
        config.parallel.zero,
        config.train.precision,
        config.seed,
        config.model.width_ratio,
        **({} if distillation is None else {"frozen": distillation.frozen}),
    )
    if folder is not None and world.first:
        report_parameters(decoder, optimizer, folder)
    settings = deepspeed_config(config, world.size)
    if type(optimizer) not in ZERO_SUPPORTED_OPTIMIZERS:
        # ours are tested at every stage (tests/train); without this DeepSpeed warns or refuses
        ZERO_SUPPORTED_OPTIMIZERS.append(type(optimizer))
    model = LossOnly(decoder, ranks, config.train.z_loss, distillation)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.gate = Gate(engine)
    return engine


def optimizer_step(
    engine: Any,
    micro_batches: list[Batch],
    lr: float,
    clip: float | None,
    world: World,
    votes: Sequence[bool] = (),
    carried: Carried | None = None,
    before_update: Callable[[], None] = lambda: None,
    step: int = 0,
    limits: Limits = NO_LIMITS,
) -> StepResult:
    """Gradients of (sum of nats over all tokens / scored labels of all ranks and micro-batches), then one update.

    DeepSpeed averages gradients over ranks, so each rank's loss is scaled up by their number; its division by the number of
    micro-batches is switched off. Ranks that share a sequence are no special case: each has the loss of its own tokens, and a part
    of every gradient.

    A gradient that is not finite on some rank, or a step beyond the limits, changes neither weights, nor optimizer, nor carried
    states.

    votes: what else the ranks have to agree on, counted in the same all-reduce. before_update: called when gradients are there.
    step: counted from 1, it keys gradient noise. limits: of the loss and of the gradient's norm, those of all ranks.
    """
    device = world.device
    counts = torch.cat([sum_scored(micro_batches)[None], torch.tensor(votes, dtype=torch.int64)])
    counts = world.sum(counts.to(device))
    scored = counts[0]
    scale = world.size / scored.clamp(min=1)
    loss_sum, loss, bad = torch.zeros((), device=device), None, False
    states = None if carried is None else list(carried.states)
    for k, batch in enumerate(micro_batches):
        batch = batch.to(device, non_blocking=True)
        nats = forward(engine, batch, carried, k)
        loss_sum += nats.detach()
        engine.backward(nats * scale, scale_wrt_gas=False)
        if k == len(micro_batches) - 1:
            engine.gate.limit = limits.grad_norm
            if limits.loss is not None:
                loss = world.sum(loss_sum.clone()) / scored.clamp(min=1)
                engine.gate.limit = limits.grad_norm if loss <= limits.loss else CLOSED
        grad_norm = clip_gradients(engine, clip) if updates_now(engine) else None
        bad = grad_norm is not None and engine.gate.closed(grad_norm)
        set_rates(engine.optimizer, lr, step)
        if k == len(micro_batches) - 1:
            before_update()
        engine.step()
    bad = bad or (grad_norm is None and engine.gate.closed(None))
    # DeepSpeed's own is infinite where the gate was closed
    norm = grad_norm if grad_norm is not None else engine.gate.norm if bad else engine.get_global_grad_norm()
    if bad and carried is not None and states is not None:
        carried.states = states
    return StepResult(loss_sum, scored, norm, counts[1:], engine.module.take_z_sum(), bad, loss)


def forward(engine: Any, batch: Batch, carried: Carried | None, k: int) -> Tensor:
    """Nats of the k-th micro-batch, a scalar; the state behind it is kept where states are carried."""
    if carried is None:
        return engine(batch.tokens_BT, batch.labels_BT, batch.docs)
    nats, state = engine(batch.tokens_BT, batch.labels_BT, batch.docs, carried.states[k], carry=True)
    carried.keep(k, state)
    return nats


def sum_scored(micro_batches: list[Batch]) -> Tensor:
    """int64 scalar on the host: this rank's scored labels."""
    return torch.stack([batch.scored for batch in micro_batches]).sum()


def updates_now(engine: Any) -> bool:
    """Whether the loop itself clips at this micro-batch: at stage 0, after the last one."""
    return engine.zero_optimization_stage() == 0 and engine.is_gradient_accumulation_boundary()


def clip_gradients(engine: Any, clip: float | None) -> Tensor:
    """The global norm of the averaged gradients, which are scaled down to `clip`."""
    return torch.nn.utils.clip_grad_norm_(engine.module.parameters(), float("inf") if clip is None else clip)
