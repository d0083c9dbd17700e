"""Small decoders, trained on a synthetic task and tested at its sizes: one process, one thread, plain PyTorch.

Data depends on the seed alone, so every architecture of a task sees the same sequences. A run ends early only where it has solved
the task.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grad_norm_

from eval.synthetic.task import Sample, Task
from llm.config import build
from llm.model import Decoder, ModelConfig, model_kinds
from llm.ops.cross_entropy import IGNORED
from llm.train.schedule import ScheduleConfig, learning_rate

WARMUP, WINDOW, FINAL_RATIO, CLIP = 50, 50, 0.1, 1.0
# training's seeds are below
VALIDATION_SEED, TEST_SEED = 1 << 20, 1 << 21


def model_of(task: Task, mixers: Mapping[str, Any], layers: Sequence[str]) -> ModelConfig:
    """A decoder of the task's width with these layers. mixers: settings by the names that `layers` uses. Raises ConfigError."""
    ffn = {"kind": "swiglu", "hidden": task.hidden} if task.hidden else "none"
    values = {
        "width": task.width,
        "depth": len(layers),
        "vocab_size": task.vocab,
        "tie_embeddings": False,
        "layers": {name: {"mixer": mixers[name], "ffn": ffn} for name in dict.fromkeys(layers)},
        "pattern": list(layers),
    }
    config = build(ModelConfig, values, model_kinds(""))
    config.check()
    return config


def loss_of(model: Decoder, tokens: Tensor, labels: Tensor) -> Tensor:
    """Nats per label."""
    return model(tokens, labels_BT=labels).loss_sum / (labels != IGNORED).sum()


def train(model: Decoder, task: Task, rate: float, seed: int) -> list[float]:
    """The loss of every step."""
    generator = Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = ScheduleConfig("cosine", warmup=min(WARMUP, task.steps - 1), final_ratio=FINAL_RATIO)
    losses: list[float] = []
    for step in range(1, task.steps + 1):
        size = task.train[int(torch.randint(len(task.train), (), generator=generator))]
        loss = loss_of(model, *task.sample(task.batch, size, generator))
        loss.backward()
        clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, rate, step, task.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % WINDOW == 0 and statistics.mean(losses[-WINDOW:]) < task.solved:
            break
    return losses


@torch.no_grad()
def validation_loss(model: Decoder, task: Task, held_out: int) -> float:
    """Mean over the sizes that were trained, of other data than training's."""
    generator = Generator().manual_seed(VALIDATION_SEED)
    batches = [task.sample(held_out // len(task.train) + 1, size, generator) for size in task.train]
    return statistics.mean(loss_of(model, *batch).item() for batch in batches)


@torch.no_grad()
def accuracy(model: Decoder, task: Task, size: int, held_out: int) -> tuple[float, float]:
    """Share of right answers, of the last token's labels or of all; and that of giving the most frequent answer always."""
    sample: Sample = task.tested or task.sample
    tokens, labels = sample(held_out, size, Generator().manual_seed(TEST_SEED + size))
    labels = labels[:, -1:] if task.last_only else labels
    asked = labels != IGNORED
    right = model(tokens, last_only=task.last_only).logits.argmax(-1) == labels
    return right[asked].float().mean().item(), (labels[asked].bincount().max() / asked.sum()).item()


def state_size(model: Decoder) -> int | None:
    """Numbers that the state of a row holds; None: it grows with the length. A position is none of them."""
    specs = {name: spec for name, spec in model.state_spec().items() if name != "position"}
    return None if any(spec.grows for spec in specs.values()) else sum(_numbers(spec.shape) for spec in specs.values())


def _numbers(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def train_and_test(task: Task, config: ModelConfig, rate: float, seed: int, held_out: int) -> dict[str, Any]:
    """One run, as JSON has it."""
    start = time.process_time()
    model = Decoder.create(config, seed)
    losses = train(model, task, rate, seed)
    tested = {str(size): accuracy(model, task, size, held_out) for size in task.tests}
    return {
        "parameters": parameters(model),
        "state": state_size(model),
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": statistics.mean(losses[-WINDOW:]),
        "validation_loss": validation_loss(model, task, held_out),
        "accuracy": {size: right for size, (right, _) in tested.items()},
        "chance": {size: constant for size, (_, constant) in tested.items()},
        "cpu_seconds": time.process_time() - start,
    }


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
