"""Continuations of many prompts at once: prompts padded on the left, each text until one of its stops."""

import torch

from eval.models.language_model import LanguageModel, ModelState
from eval.prefill import prefill
from llm.generate import Sampling, choose


def continuations(model: LanguageModel, prompts: list[list[int]], sampling: Sampling, until: list[str], rows: int) -> list[str]:
    """What follows each prompt, without the stop that ended it. The opening token ends a text too: a new document would begin."""
    found: list[str] = [""] * len(prompts)
    for numbers in _batches(prompts, rows, model.packs):
        for k, text in zip(numbers, _together(model, [prompts[k] for k in numbers], sampling, until), strict=True):
            found[k] = text
    return found


def _batches(prompts: list[list[int]], rows: int, packs: bool) -> list[list[int]]:
    """The longest prompts first. Only a model that can be told where documents start takes prompts of several lengths at once."""
    batches: list[list[int]] = []
    for k in sorted(range(len(prompts)), key=lambda k: -len(prompts[k])):
        alike = batches and (packs or len(prompts[batches[-1][0]]) == len(prompts[k]))
        if alike and len(batches[-1]) < rows:
            batches[-1].append(k)
        else:
            batches.append([k])
    return batches


def _together(model: LanguageModel, prompts: list[list[int]], sampling: Sampling, until: list[str]) -> list[str]:
    generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    texts: list[str | None] = [None] * len(prompts)
    logits_BZ, state = prefill(model, prompts)
    for _ in range(sampling.tokens):
        chosen = [choose(logits_BZ[row], sampling, generators[row]) for row in range(len(prompts))]
        for row, token in enumerate(chosen):
            if texts[row] is None:
                texts[row] = _ended(model, ids[row], token, until)
        if None not in texts:
            break
        logits_BZ, state = _next(model, chosen, state)
    return [model.decode(ids[row]) if text is None else text for row, text in enumerate(texts)]


def _next(model: LanguageModel, chosen: list[int], state: ModelState) -> tuple[torch.Tensor, ModelState]:
    logits_BTZ, state = model.logits(torch.tensor(chosen)[:, None], state)
    return logits_BTZ[:, -1], state


def _ended(model: LanguageModel, ids: list[int], token: int, until: list[str]) -> str | None:
    """The whole text if `token` ends it; otherwise None, and the token is put to the others."""
    if token == model.opening:
        return model.decode(ids)
    ids.append(token)
    text = model.decode(ids)
    cuts = [text.index(stop) for stop in until if stop and stop in text]
    return text[: min(cuts)] if cuts else None
