"""The one place that knows DeepSpeed's config: RunConfig -> its dict.

bf16 at stages 1 and 2: no `bf16` section, which would cast every parameter. We cast the model (llm/train/precision.py); pinned
parameters stay float32 in a group of their own, ZeRO keeps float32 masters of all. At stage 3, where mixed dtypes are refused,
`torch_autocast` with float32 parameters, gathered in bf16. Gradients are accumulated in float32 everywhere.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llm.cost import model_cost
from llm.model import Decoder
from llm.parallel import Ranks
from llm.train.config import RunConfig, accumulation_of, micro_batch_of
from llm.train.distill import Distillation
from llm.train.engine_bytes import bucket_size
from llm.train.precision import KEPT_WHOLE, casts_model


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's dict. Learning rates are set by the loop at every step, so it names no scheduler."""
    stage = config.parallel.zero
    micro_batch, accumulation = micro_batch_of(config, world_size), accumulation_of(config, world_size)
    parameters = model_cost(config.model, config.data.sequence_length).parameters
    settings: dict[str, Any] = {
        # more than the batch where rows that are not scored make the ranks' shares alike
        "train_batch_size": world_size * micro_batch * accumulation,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # at stage 0 the loop clips, because DeepSpeed would keep the norm to itself
        "gradient_clipping": (config.train.clip or 0.0) if stage else 0.0,
        "zero_optimization": zero_section(stage, parameters, config.parallel.offload),
        # torch's fused AdamW runs on CPUs too, and needs no build as DeepSpeed's does
        "zero_force_ds_cpu_optimizer": False,
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
            # by role instead, in `prepare`
            "lower_precision_safe_modules": [],
        }
    return settings


def zero_section(stage: int, parameters: int, offload: str = "none") -> dict[str, Any]:
    """Settings of ZeRO. Its bucket is taken whole at every backward pass, so it is never larger than the model's gradients."""
    if stage == 0:
        return {"stage": 0}
    section: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket_size(parameters),
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
        # in the order of parameters, and one flat tensor per group: as llm/train/layout.py has it
        "round_robin_gradients": False,
        "sub_group_size": 10**12,
        "stage3_param_persistence_threshold": KEPT_WHOLE,
    }
    if offload == "optimizer":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return section


class LossOnly(nn.Module):
    """The decoder as the engine runs it: the summed loss, a scalar, comes out, and the state where it is carried on.

    Without labels, logits and state, of a sequence that this rank has to itself.
    z_sum: with a z-loss, the sum of log^2 Z over the micro-batches since `take_z_sum`. distillation: makes the loss of training.
    """

    def __init__(self, decoder: Decoder, ranks: Ranks | None = None, z_loss: float = 0.0, distillation: Distillation | None = None):
        super().__init__()
        self.decoder, self.ranks, self.z_loss, self.distillation = decoder, ranks, z_loss, distillation
        self.z_sum: Tensor | None = None

    def forward(self, tokens_BT, labels_BT, docs, state=None, carry=False):
        if labels_BT is None:
            out = self.decoder(tokens_BT, state, docs)
            return out.logits, out.state
        if self.distillation is not None and self.training:
            return self.distillation.loss(self.decoder, tokens_BT, labels_BT, docs, self.ranks)
        out = self.decoder(tokens_BT, state, docs, labels_BT, ranks=self.ranks, z_loss=self.z_loss)
        if self.z_loss and self.training:
            self.z_sum = out.z_sum if self.z_sum is None else self.z_sum + out.z_sum
        return (out.loss_sum, out.state) if carry else out.loss_sum

    def take_z_sum(self) -> Tensor | None:
        z_sum, self.z_sum = self.z_sum, None
        return z_sum
