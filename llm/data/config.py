"""What a run reads: settings of the token stream."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING


@dataclass(frozen=True)
class DataConfig:
    """manifest: the dataset's `manifest.json`, or its folder. sequence_length: tokens per sequence, T.

    packing: `concat` cuts the concatenated documents every T tokens. prefetch: steps read ahead by a thread; 0 reads in the loop.
    """

    manifest: str = MISSING
    sequence_length: int = 1024
    packing: Literal["concat"] = "concat"
    prefetch: int = 2
