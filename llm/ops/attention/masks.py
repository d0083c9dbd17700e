"""Masks that are made again in the backward pass: kept, those of a row's blocks are of size T x T."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F


def made_again(mask: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Around an attention with the bool `mask`: what autograd would keep of it, -inf where it is False, is made from `make`.

    make: the mask, or its last columns where those before are True. `torch.compile` decides itself what it makes again.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    shape = mask.shape

    def keep(x: Tensor) -> Tensor | torch.dtype:
        return x.dtype if x.shape == shape and not x.requires_grad else x

    def give(kept: Tensor | torch.dtype) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        made = make()
        made = F.pad(made, (shape[-1] - made.shape[-1], 0), value=True)
        return made if kept == torch.bool else torch.zeros_like(made, dtype=kept).masked_fill_(~made, -torch.inf)

    return saved_tensors_hooks(keep, give)
