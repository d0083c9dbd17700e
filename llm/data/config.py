"""What a run reads: settings of the token stream."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from llm.data.manifest import Manifest
from llm.data.remote import CacheConfig
from llm.errors import ConfigError

LANES = 64


@dataclass(frozen=True)
class DataConfig:
    """manifest: the dataset's `manifest.json`, or its folder. sequence_length: tokens per sequence, T.

    packing: `concat` cuts the concatenated documents every T tokens; `bestfit` cuts no document of up to T tokens; `contiguous`
    keeps the pieces of a document in order on one row of the batch.
    mixture: weights by source, instead of the manifest's; sources that it leaves out are not read.
    lanes: the order's canonical lanes, a power of two: N nodes, N dividing it, read 1/N of the bytes each (llm/data/lanes.py);
    null: 64. For `contiguous`: rows of the batch, fixed for the run; null: `train.batch`.
    workers: threads that read ahead; 0 reads in the loop. prefetch: steps read ahead.
    on_corrupt: what is done where a shard is damaged, `stop`, or `substitute` another sequence, counted in the metrics.
    cache: of a dataset elsewhere, whose `manifest` is an address such as s3://bucket/folder.
    """

    manifest: str = MISSING
    sequence_length: int = 1024
    packing: Literal["concat", "bestfit", "contiguous"] = "concat"
    mixture: dict[str, float] | None = None
    lanes: int | None = None
    workers: int = 1
    prefetch: int = 2
    on_corrupt: Literal["stop", "substitute"] = "stop"
    cache: CacheConfig = field(default_factory=CacheConfig)

    def load_manifest(self) -> Manifest:
        """Raises DataError, ConfigError."""
        return Manifest.load(self.manifest, self.cache, check_shards=self.on_corrupt == "stop")

    def check(self, where: str = "data") -> None:
        """Raises ConfigError."""
        if self.sequence_length < 1:
            raise ConfigError(f"{where}.sequence_length ({self.sequence_length}) must be at least 1; use 1024")
        if self.lanes is not None and self.lanes < 1:
            raise ConfigError(f"{where}.lanes ({self.lanes}) must be at least 1; leave it out for the default")
        if self.workers < 0 or (self.workers and self.prefetch < 1):
            law = "must not be negative, and readers need a step to read ahead"
            raise ConfigError(
                f"{where}.workers ({self.workers}), {where}.prefetch ({self.prefetch}): {law}; use 1 and 2, or workers=0"
            )
        if self.packing == "contiguous" and self.on_corrupt == "substitute":
            raise ConfigError(
                f"{where}.on_corrupt (substitute) would break a document that {where}.packing (contiguous) carries on; use stop"
            )
