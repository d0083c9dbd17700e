"""Data of other projects as datasets of ours: token files of nanoGPT, llm.c, Megatron and datatrove become shards; WebDataset tars
are indexed once and trained from in place (arrays of ids) or encoded once (text).

Each kind of token file is a reader: `documents()` gives (place, ids) in constant memory and refuses files that contradict
themselves.
"""

from data_prep.convert.convert import convert
from data_prep.convert.datatrove import Datatrove
from data_prep.convert.ids import ConvertConfig, Counts
from data_prep.convert.index import index_arrays
from data_prep.convert.megatron import Megatron
from data_prep.convert.nanogpt import NanoGPT
from data_prep.convert.texts import encode_texts

__all__ = ["ConvertConfig", "Counts", "Datatrove", "Megatron", "NanoGPT", "convert", "encode_texts", "index_arrays"]
