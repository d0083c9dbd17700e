"""Verification is part of exporting: what a stranger computes from the folder is what the training model computes."""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from llm.docs import Docs
from llm.errors import CheckpointError
from llm.export.native import WeightNames, parted
from llm.export.weights import Shards
from llm.init import cast_model
from llm.model import Decoder
from llm.ops.linear.chunk import CHUNK

TOLERANCE = 1e-5
# Three chunks of the recurrences and a bit, so that states are handed on.
TOKENS = 3 * CHUNK + 5
PADDING = CHUNK - 1
CUTS = [1, CHUNK - 1, 2 * CHUNK + 2]
# what generation reads at once, before it goes on token by token
PROMPT = 2 * CHUNK + 2
PARTS = ("full", "steps", "chunks", "left_padded")
LOW = ("bfloat16_full", "bfloat16_steps")
TIMEOUT = 1800


def verify(model: Decoder, folder: Path, parts: Collection[str] = PARTS, bfloat16: bool = False) -> dict[str, float]:
    """The largest absolute differences in float32 between the logits of `model` and those of `folder` in transformers.

    bfloat16: the folder's weights are, and `model` holds them in float32. Loaded as it asks for itself, in bfloat16, the folder's
    errors beside float32 are `LOW`, root mean squares; they may be twice the model's own (the law of flash-attention's tests).

    Raises:
        CheckpointError: the folder does not load without Braid, or its logits differ by more than `TOLERANCE`, times the largest
        logit where that is above 1: rounding grows with it.
    """
    expected, bounds = expectation(model, parts, bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "expected.safetensors"
        save_file(expected, file)
        environment = {**os.environ, "HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-I", str(Path(__file__).with_name("reload.py")), str(folder.resolve()), str(file)]
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"the folder does not load in transformers without Braid ({last}); nothing was written")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    for name, difference in found.items():
        if math.isnan(difference) or difference > bounds[name]:
            raise CheckpointError(
                f"the folder's logits in transformers ({name}) differ from the model's by {difference:.1e}, "
                f"more than {bounds[name]:.0e}; nothing was written"
            )
    return found


def versions() -> dict[str, str]:
    """Of what reads and writes the format."""
    libraries = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers, safetensors)}
    return {"python": platform.python_version(), **libraries}


def same_weights(folder: Path, names: WeightNames, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless what lies in `folder`, read back into our names, is `weights` to the bit."""
    written = Shards(folder)
    for theirs, ours in names:
        wanted = [weights[name] for name in ours]
        for name, got, want in zip(ours, parted(written[theirs], [x.shape for x in wanted]), wanted, strict=True):
            if not torch.equal(got, want.to(got.dtype)):
                raise CheckpointError(f"the folder's {theirs} is not the checkpoint's {name}; nothing was written")


def expectation(model: Decoder, parts: Collection[str], bfloat16: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What `reload.py` compares with, and how much of a difference each part may show."""
    expected = expected_logits(model, parts)
    bounds = dict.fromkeys(parts, TOLERANCE * max(1.0, float(expected["full"].abs().max())))
    if bfloat16:
        bounds |= {part: 2 * error for part, error in _own_errors(model, expected).items()}
        expected["bfloat16"] = torch.tensor(True)
    return expected, bounds


@torch.no_grad()
def expected_logits(model: Decoder, parts: Collection[str] = PARTS) -> dict[str, Tensor]:
    """Of the model itself on random tokens, whole, and as the other `parts` say."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, TOKENS), generator=generator)
    expected = {"tokens": tokens, "full": model(tokens).logits, "steps": _steps(model, tokens)}
    if "chunks" in parts:
        expected |= {"cuts": torch.tensor(CUTS), "chunks": _continued(model, tokens, CUTS)}
    if "left_padded" in parts:
        mask = torch.ones_like(tokens)
        mask[0, :PADDING] = 0
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        starts[0, PADDING] = starts[1, 0] = True
        expected |= {"mask": mask, "left_padded": model(tokens, None, Docs(starts)).logits}
    return expected


@torch.no_grad()
def _own_errors(model: Decoder, expected: Mapping[str, Tensor]) -> dict[str, float]:
    """How far the model's logits in bfloat16 are from float32. Its weights lose nothing by that."""
    cast_model(model)
    found = model(expected["tokens"]).logits, _steps(model, expected["tokens"])
    model.float()
    wanted = expected["full"], expected["steps"]
    return {part: float((a - b).square().mean().sqrt()) for part, a, b in zip(LOW, found, wanted, strict=True)}


def _steps(model: Decoder, tokens: Tensor) -> Tensor:
    """Logits of the prompt's last token and of those behind it, one by one from the state."""
    return _continued(model, tokens, list(range(PROMPT, TOKENS)))[:, PROMPT - 1 :].contiguous()


def _continued(model: Decoder, tokens: Tensor, cuts: list[int]) -> Tensor:
    """Logits of the tokens in pieces, each from the state of the one before."""
    state, pieces = None, []
    for piece in torch.tensor_split(tokens, cuts, 1):
        out = model(piece, state)
        pieces.append(out.logits)
        state = out.state
    return torch.cat(pieces, 1)
