"""What a rank holds, at every ZeRO stage, as contiguous slices of flattened parameters: views into DeepSpeed's engine.

| stage | what the optimizer updates | a rank's part of a parameter |
|---|---|---|
| 0 | the parameter | all of it, as every other rank |
| 1, 2 | one flat float32 partition per group of parameters | where the partition meets it |
| 3 | flat float32 sub-groups | the rank-th of `ranks` equal parts |

Which slices those are is the arithmetic of llm/train/layout.py.

Saving reads these slices, loading writes into them; nothing else has to know how many ranks there are, or the stage.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llm.train.layout import pieces

Scalars = dict[str, float | int | list[float]]


@dataclass(frozen=True)
class Fragment:
    """Elements `start` ... of the flattened parameter `name`: views into the engine, `[n]`.

    shape: of the whole parameter. weight: float32. state: the optimizer's, by its own key, one value per element. scalars: of its
    state as they go into JSON: numbers, and a list of one number where it is a tensor (`step`).
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    state: dict[str, Tensor]
    scalars: Scalars


class Slice(NamedTuple):
    """`numel` elements of a parameter from `start` on lie in a held tensor from `offset` on."""

    name: str
    shape: tuple[int, ...]
    start: int
    offset: int
    numel: int


class Held(NamedTuple):
    """What the optimizer updates as one, in float32; its group; and what lies in it."""

    tensor: Tensor
    group: dict[str, Any]
    slices: list[Slice]


def fragments(engine: Any) -> list[Fragment]:
    """All that this rank holds."""
    found = []
    for tensor, _, slices in held(engine):
        state = inner_optimizer(engine).state.get(tensor, {})
        flat = {key: value.reshape(-1) for key, value in state.items() if is_per_element(value, tensor)}
        scalars = {key: _plain(key, value) for key, value in state.items() if key not in flat}
        for name, shape, start, offset, numel in slices:
            part = slice(offset, offset + numel)
            weight = tensor.detach().reshape(-1)[part]
            found.append(Fragment(name, shape, start, weight, {key: value[part] for key, value in flat.items()}, scalars))
    return found


def to_save(engine: Any, rank: int, ranks: int) -> list[Fragment]:
    """What this rank saves of it: where all ranks hold everything, a share."""
    return fragments(engine) if engine.zero_optimization_stage() else dealt(fragments(engine), rank, ranks)


def dealt(found: list[Fragment], rank: int, ranks: int) -> list[Fragment]:
    """This rank's share, by elements, of fragments that all ranks hold alike."""
    total = sum(fragment.weight.numel() for fragment in found)
    first, last = total * rank // ranks, total * (rank + 1) // ranks
    share, position = [], 0
    for fragment in found:
        low, high = (min(max(border - position, 0), fragment.weight.numel()) for border in (first, last))
        position += fragment.weight.numel()
        if low < high:
            state = {key: value[low:high] for key, value in fragment.state.items()}
            weight = fragment.weight[low:high]
            share.append(Fragment(fragment.name, fragment.shape, fragment.start + low, weight, state, fragment.scalars))
    return share


def allocate_states(engine: Any, keys: Mapping[str, set[str]], scalars: Mapping[str, Scalars]) -> None:
    """Give the optimizer the states that a checkpoint has, to be filled: it makes its own at the first step only.

    keys: of each parameter's state, with a value per element. scalars: of each parameter's state.
    """
    for tensor, group, slices in held(engine):
        names = [part.name for part in slices]
        state = inner_optimizer(engine).state[tensor]
        wanted = {key for name in names for key in keys.get(name, ())}
        for key in [key for key in state if key not in wanted]:
            del state[key]
        for key in sorted(wanted - state.keys()):
            state[key] = torch.zeros_like(tensor, requires_grad=False)
        # of all parameters in one held tensor, as the optimizer steps them together
        for key, value in scalars.get(names[0], {}).items() if names else ():
            on_device = group.get("fused") or group.get("capturable")
            device = tensor.device if on_device else torch.device("cpu")
            state[key] = torch.tensor(value[0], dtype=torch.float32, device=device) if isinstance(value, list) else value


@torch.no_grad()
def refresh_weights(engine: Any) -> None:
    """Bring the weights that the model computes with up to the float32 ones just written. All ranks call it together."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer.checkpoint_event_prologue()
        for sub_group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        # gathers the small parameters that every rank keeps whole
        optimizer.checkpoint_event_epilogue()


def held(engine: Any) -> Iterator[Held]:
    """Every tensor that this rank's optimizer updates, in one order for equal ranks and stages."""
    names = {parameter: name for name, parameter in engine.module.decoder.named_parameters()}
    stage = engine.zero_optimization_stage()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if stage else (0, 1)
    for tensor, group, parameters in _updated(engine.optimizer, stage):
        shapes = [tuple(parameter.ds_shape if stage == 3 else parameter.shape) for parameter in parameters]
        found = pieces([math.prod(shape) for shape in shapes], stage, rank, ranks, tensor.numel())
        yield Held(tensor, group, [Slice(names[parameters[k]], shapes[k], first, at, last - first) for k, first, last, at in found])


def _updated(optimizer: Any, stage: int) -> Iterator[tuple[Tensor, dict[str, Any], list[Any]]]:
    """A tensor, its group, and the parameters that lie in it, end to end or each in part (llm/train/layout.py)."""
    if stage == 0:
        yield from ((parameter, group, [parameter]) for group in optimizer.param_groups for parameter in group["params"])
        return
    groups = optimizer.optimizer.param_groups
    if stage == 3:
        for k, tensor in enumerate(optimizer.fp32_partitioned_groups_flat):
            yield tensor, groups[optimizer.sub_group_to_group_id[k]], optimizer.fp16_groups[k]
    else:
        yield from zip(optimizer.single_partition_of_fp32_groups, groups, optimizer.bit16_groups, strict=True)


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer, which holds the states."""
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def is_per_element(value: Any, tensor: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == tensor.shape


def _plain(key: str, value: Any) -> float | int | list[float]:
    if isinstance(value, Tensor):
        assert value.numel() == 1, f"optimizer state {key} {tuple(value.shape)} is neither per element nor a scalar"
        return [value.item()]
    assert isinstance(value, int | float), f"optimizer state {key} ({type(value).__name__}) is no number"
    return value
