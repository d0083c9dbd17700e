"""The gate between gradients and the update: no weight and no moment of the optimizer sees a step that is bad.

A step is bad when the global norm of its gradient is not finite, or above a limit. Every rank has this norm alike, and a value that
is not finite in any rank's gradient makes it so. The check costs one read by the host per step.
"""

import math
from typing import Any

import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor

# a limit that no norm is below
CLOSED = -1.0


class Gate:
    """Of one engine, which from now on leaves out updates that do not pass. limit: of this step's norm. norm: the last step's.

    Above stage 0 the norm is known inside DeepSpeed alone (0.19.8, `step` of stage3.py and stage_1_and_2.py). It leaves out what is
    not finite, under ZeRO 1 and 2 in bfloat16 by `check_grad_overflow`; that one's own pass over all gradients is not needed, as
    the norm says the same. So a norm that does not pass is shown to it as infinite.
    """

    def __init__(self, engine: Any):
        self.limit, self.norm = math.inf, torch.zeros(())
        self.engine = engine
        optimizer = engine.optimizer
        if engine.zero_optimization_stage() in (1, 2):
            optimizer.check_grad_overflow = True
            optimizer.check_overflow = lambda **_: None
            of_all = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda: self._shown(of_all())
        elif engine.zero_optimization_stage() == 3:
            of_groups = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: self._shown_groups(of_groups())

    def closed(self, grad_norm: Tensor | None) -> bool:
        """Whether the update that follows or has been made is none. grad_norm: at stage 0, where gradients are taken away here,
        before `engine.step`; None above it, after it.
        """
        if grad_norm is None:
            return bool(self.engine.optimizer.overflow)
        bad = bool(torch.isinf(self._shown(grad_norm)))
        if bad:
            self.engine.optimizer.zero_grad(set_to_none=True)
        return bad

    def _shown(self, norm: Tensor) -> Tensor:
        self.norm = norm
        return torch.where(norm <= self.limit, norm, torch.inf)

    def _shown_groups(self, norms: list[Tensor]) -> list[Tensor]:
        """The norms of the optimizer's groups, of which DeepSpeed makes the global one."""
        shown = self._shown(combine_grad_norm_groups(norms))
        return norms if bool(torch.isfinite(shown)) else [shown]
