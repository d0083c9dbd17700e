"""Token files of other projects -> our shards: nanoGPT and llm.c, Megatron, datatrove.

Each kind is a reader: `documents()` gives (place, ids) in constant memory and refuses files that contradict themselves.
"""

from data_prep.convert.convert import ConvertConfig, Counts, convert
from data_prep.convert.datatrove import Datatrove
from data_prep.convert.megatron import Megatron
from data_prep.convert.nanogpt import NanoGPT

__all__ = ["ConvertConfig", "Counts", "Datatrove", "Megatron", "NanoGPT", "convert"]
