"""Where a step first stops being finite: its batch runs again, with a look at weights, every layer's output and every gradient."""

from typing import Any

import torch
from torch import Tensor

from llm.data import Batch
from llm.train.carried import Carried
from llm.train.world import World


def diagnose(engine: Any, micro_batches: list[Batch], carried: Carried | None, world: World) -> dict[str, list[str | None]]:
    """By rank: `weight`, the first parameter whose own part is not finite; `output`, the first module whose output is not;
    `gradient`, the parameter whose gradient is not, of those that the backward pass comes to first. None: all are.

    The engine's gradients are spoilt by it. All ranks call it together.
    """
    found: dict[str, str | None] = dict.fromkeys(("weight", "output", "gradient"))
    decoder, handles = engine.module.decoder, []
    for name, parameter in decoder.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter)
        if found["weight"] is None and not finite(held.detach()):
            found["weight"] = name
        handles.append(parameter.register_hook(lambda gradient, name=name: note(found, "gradient", name, gradient)))
    for name, module in decoder.named_modules():
        handles.append(module.register_forward_hook(lambda _module, _inputs, out, name=name: note(found, "output", name, out)))
    try:
        for k, batch in enumerate(micro_batches):
            batch = batch.to(world.device)
            if carried is None:
                loss = engine(batch.tokens_BT, batch.labels_BT, batch.docs)
            else:
                loss, _ = engine(batch.tokens_BT, batch.labels_BT, batch.docs, carried.states[k], carry=True)
            engine.backward(loss, scale_wrt_gas=False)
    finally:
        for handle in handles:
            handle.remove()
    return {kind: world.gather(name) for kind, name in found.items()}


def note(found: dict[str, str | None], kind: str, name: str, value: Any) -> None:
    """Keep the first name whose value is not finite. Modules inside come before those that hold them."""
    if found[kind] is None and not finite(value):
        found[kind] = name or "decoder"


def finite(value: Any) -> bool:
    """Of tensors, and of what holds them: tuples, lists, dicts."""
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all()) if value.is_floating_point() else True
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, tuple | list) else True


def said(found: dict[str, list[str | None]]) -> str:
    """In words, of the lowest rank that has found each."""
    kinds = {"weight": "weights", "output": "the output of", "gradient": "the gradient of"}
    parts = []
    for kind, words in kinds.items():
        rank, name = next(((rank, name) for rank, name in enumerate(found[kind]) if name), (0, None))
        if name:
            parts.append(f"{words} {name} on rank {rank}")
    return ", ".join(parts) or "nothing in a second run of the same batch, so a device may be faulty"
