"""The table of evaluations. A new one is a file with a config and a function, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval import curves, throughput
from eval.bigram import BigramConfig, bigram
from eval.figures import Result
from eval.harness.task import HarnessConfig, harness
from eval.needles.grid import draw_grid
from eval.needles.needle import NeedleConfig, needle
from eval.needles.ruler import RulerConfig, draw_ruler, ruler
from eval.needles.tokens import NeedleTokensConfig, needle_tokens
from eval.perplexity import PerplexityConfig, perplexity
from eval.probes import layers
from eval.probes.capacity import CapacityConfig, capacity, draw_capacity
from eval.probes.next_token_law import NextTokenLawConfig, draw_law, next_token_law
from eval.probes.verbatim import VerbatimConfig, draw_verbatim, verbatim


@dataclass(frozen=True)
class Task:
    """An evaluation.

    config: a frozen dataclass of settings with defaults. do: `(Subject, config) -> Result`; where `model` is False, it is called
    with None. all_ranks: every rank calls it, with the whole work, and shares it out by `subject.world`; otherwise the first alone.
    in_training: it may run inside training: the model is called by `score` alone, which keeps ranks in step.
    picture: draws on a matplotlib figure, from the `details` of the results by model's name.
    """

    config: type
    do: Callable[[Any, Any], Result]
    model: bool = True
    all_ranks: bool = False
    in_training: bool = False
    picture: Callable[[Any, dict[str, dict[str, Any]]], None] | None = None


TASKS: dict[str, Task] = {
    "perplexity": Task(PerplexityConfig, perplexity, all_ranks=True, in_training=True, picture=curves.draw),
    "bigram": Task(BigramConfig, bigram),
    "throughput": Task(throughput.ThroughputConfig, throughput.throughput, picture=throughput.draw),
    "needle": Task(NeedleConfig, needle, all_ranks=True, picture=draw_grid),
    "ruler": Task(RulerConfig, ruler, all_ranks=True, picture=draw_ruler),
    "needle_tokens": Task(NeedleTokensConfig, needle_tokens, all_ranks=True, picture=draw_grid),
    "verbatim": Task(VerbatimConfig, verbatim, all_ranks=True, picture=draw_verbatim),
    "capacity": Task(CapacityConfig, capacity, all_ranks=True, picture=draw_capacity),
    "attention_maps": Task(layers.LayersConfig, layers.attention_maps, picture=layers.draw_maps),
    "timescales": Task(layers.LayersConfig, layers.timescales, picture=layers.draw_timescales),
    "logit_lens": Task(layers.LayersConfig, layers.logit_lens, picture=layers.draw_lens),
    "next_token_law": Task(NextTokenLawConfig, next_token_law, picture=draw_law),
    "lm_eval": Task(HarnessConfig, harness, all_ranks=True),
}
