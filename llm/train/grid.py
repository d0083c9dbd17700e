"""Where a rank stands in the grid of data x sequence: which reader it is or shares, and with whom."""

import torch.distributed as dist

from llm.parallel import Ranks
from llm.train.config import RunConfig, accumulation_of, data_ranks, micro_batch_of
from llm.train.world import World


def place(config: RunConfig, world: World) -> tuple[int, tuple[int, int]]:
    """Which reader this rank is or shares, and its part of the reader's sequences: neighbouring ranks share."""
    reader, part = divmod(world.rank, config.parallel.sequence)
    return reader, (part, config.parallel.sequence)


def sequence_ranks(config: RunConfig, world: World) -> Ranks | None:
    """The ranks that this one shares sequences with; None: it has them to itself. All ranks call it together."""
    size = config.parallel.sequence
    if size == 1:
        return None
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world.size, size)]
    reader, (part, _) = place(config, world)
    return Ranks(part, size, groups[reader], config.parallel.mode, states=config.data.packing == "contiguous")


def leave(ranks: Ranks | None) -> None:
    """Give up the group of ranks that shared sequences."""
    if ranks is not None:
        dist.destroy_process_group(ranks.group)


def unscored_rows(config: RunConfig, ranks: int) -> list[str]:
    """What it costs when the ranks' micro-batches have room for more rows than the batch has."""
    readers, batch = data_ranks(config, ranks), config.train.batch
    rows = readers * micro_batch_of(config, ranks) * accumulation_of(config, ranks)
    if rows == batch:
        return []
    law = "rows that are not scored fill the ranks' micro-batches"
    return [f"train.batch ({batch}) on {readers} readers: {rows - batch} of {rows} {law}; {readers} should divide the batch"]
