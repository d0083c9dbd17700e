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
TIMEOUT = 1800


def verify(model: Decoder, folder: Path, parts: Collection[str] = PARTS) -> dict[str, float]:
    """The largest absolute differences in float32 between the logits of `model` and those of `folder` in transformers.

    Raises:
        CheckpointError: the folder does not load without Braid, or its logits differ by more than `TOLERANCE`, times the largest
        logit where that is above 1: rounding grows with it.
    """
    expected = expected_logits(model, parts)
    bound = TOLERANCE * max(1.0, float(expected["full"].abs().max()))
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
        if math.isnan(difference) or difference > bound:
            raise CheckpointError(
                f"the folder's logits in transformers ({name}) differ from the model's by {difference:.1e}, "
                f"more than {bound:.0e}; nothing was written"
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


@torch.no_grad()
def expected_logits(model: Decoder, parts: Collection[str] = PARTS) -> dict[str, Tensor]:
    """What `reload.py` compares with: the model itself on random tokens, whole, and as the other `parts` say."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, TOKENS), generator=generator)
    steps = _continued(model, tokens, list(range(PROMPT, TOKENS)))[:, PROMPT - 1 :].contiguous()
    expected = {"tokens": tokens, "full": model(tokens).logits, "steps": steps}
    if "chunks" in parts:
        expected |= {"cuts": torch.tensor(CUTS), "chunks": _continued(model, tokens, CUTS)}
    if "left_padded" in parts:
        mask = torch.ones_like(tokens)
        mask[0, :PADDING] = 0
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        starts[0, PADDING] = starts[1, 0] = True
        expected |= {"mask": mask, "left_padded": model(tokens, None, Docs(starts)).logits}
    return expected


def _continued(model: Decoder, tokens: Tensor, cuts: list[int]) -> Tensor:
    """Logits of the tokens in pieces, each from the state of the one before."""
    state, pieces = None, []
    for piece in torch.tensor_split(tokens, cuts, 1):
        out = model(piece, state)
        pieces.append(out.logits)
        state = out.state
    return torch.cat(pieces, 1)
