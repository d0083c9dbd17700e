"""Which ops a mixer crosses time by, found by running it on the meta device: for laws and plans that hold before it is built."""

from functools import lru_cache
from typing import Any

import torch

from llm.mixers import MIXERS
from llm.parallel.plan import Op
from llm.sequence import Seq

TOKENS = 128


@lru_cache(maxsize=256)
def _ops(kind: str, config: Any, width: int) -> tuple[Op, ...]:
    with torch.device("meta"):
        mixer = MIXERS[kind][1](config, width)
        seq = Seq(mixer.init_state(1, "meta"), True, None, TOKENS)
        with torch.no_grad():
            mixer.mix(torch.empty(1, TOKENS, width), seq)
    return tuple(seq.ops)


def ops_of(config: Any, width: int) -> tuple[Op, ...]:
    """The ops of a mixer with this config, in their order."""
    return _ops(config.kind, config, width)
