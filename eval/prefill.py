"""Prompts of any length, read in windows with the state carried: for a recurrent stack memory does not grow with the prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eval.models.language_model import LanguageModel, ModelState

# tokens read at once
WINDOW = 4096


def prefill(model: LanguageModel, prompts: Sequence[Sequence[int] | np.ndarray], window: int = WINDOW) -> tuple[Tensor, ModelState]:
    """Logits `[B, Z]` of what follows each prompt, and the state behind them all.

    Prompts are padded on the left; only a model that can be told where documents start takes several lengths at once.
    """
    longest = max(map(len, prompts))
    first = np.array([longest - len(prompt) for prompt in prompts])
    tokens_BT = np.zeros((len(prompts), longest), dtype=np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, first[row] :] = prompt
    state: ModelState = None
    for begin in range(0, longest, window):
        tokens = torch.from_numpy(tokens_BT[:, begin : begin + window]).long()
        starts = torch.from_numpy(first[:, None] == np.arange(begin, begin + tokens.shape[1])) if model.packs else None
        logits_BTZ, state = model.logits(tokens, state, starts, last_only=True)
    return logits_BTZ[:, -1], state
