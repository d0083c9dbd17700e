"""The one place that knows DeepSpeed's config: RunConfig -> its dict, and the optimizer with its parameter groups.

bf16 at stages 1 and 2: no `bf16` section, which would cast every parameter. We cast the model (llm/train/precision.py), pinned
parameters stay float32 in a group of their own, ZeRO keeps float32 masters of all. At stage 3, where mixed dtypes are refused,
`torch_autocast` with float32 parameters, gathered in bf16. Gradients are accumulated in float32 everywhere.
"""

from typing import Any

import torch
from torch import nn

from llm.init import ROLES, parameter_roles
from llm.model import Decoder
from llm.parallel import Ranks
from llm.train.config import OptimizerConfig, RunConfig, accumulation_of, micro_batch_of
from llm.train.precision import casts_model


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's dict. Learning rates are set by the loop at every step, so it names no scheduler."""
    stage = config.parallel.zero
    micro_batch, accumulation = micro_batch_of(config, world_size), accumulation_of(config, world_size)
    settings: dict[str, Any] = {
        # more than the batch where rows that are not scored make the ranks' shares alike
        "train_batch_size": world_size * micro_batch * accumulation,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # at stage 0 the loop clips, because DeepSpeed would keep the norm to itself
        "gradient_clipping": (config.train.clip or 0.0) if stage else 0.0,
        "zero_optimization": zero_section(stage),
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }
    if config.train.precision == "bf16" and stage:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if casts_model(config):
        settings["communication_data_type"] = "bf16"
    elif config.train.precision == "bf16":
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": ["torch.nn.Linear"],
        }
    return settings


def zero_section(stage: int) -> dict[str, Any]:
    """Settings of ZeRO."""
    if stage == 0:
        return {"stage": 0}
    return {
        "stage": stage,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
        "round_robin_gradients": False,
    }


def create_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """torch's fused AdamW: the same element-wise arithmetic at every stage, on CPU and CUDA, without a build."""
    return torch.optim.AdamW(
        parameter_groups(config, model),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=0.0,
        fused=True,
    )


def parameter_groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Groups by role: matrices that decay; the rest; and the rest that is kept in float32. ZeRO flattens each group by itself."""
    roles = parameter_roles(model)
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        role = ROLES[roles[name]]
        kinds.setdefault((role.weight_decay, role.float32), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
        for (decays, _), parameters in sorted(kinds.items(), key=lambda kind: kind[0], reverse=True)
    ]


class LossOnly(nn.Module):
    """The decoder as the engine runs it: the summed loss, a scalar, comes out, and the state where it is carried on.

    Without labels, logits and state, of a sequence that this rank has to itself.
    """

    def __init__(self, decoder: Decoder, ranks: Ranks | None = None):
        super().__init__()
        self.decoder, self.ranks = decoder, ranks

    def forward(self, tokens_BT, labels_BT, docs, state=None, carry=False):
        if labels_BT is None:
            out = self.decoder(tokens_BT, state, docs)
            return out.logits, out.state
        out = self.decoder(tokens_BT, state, docs, labels_BT, ranks=self.ranks)
        return (out.loss_sum, out.state) if carry else out.loss_sum
