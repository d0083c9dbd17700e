"""Datasets of shards, and exact, elastic streams of batches from them: a pure function of (manifest, seed, position)."""

from llm.data.batch import Batch, Batches, HeldOutBatches
from llm.data.config import DataConfig
from llm.data.manifest import Manifest
from llm.data.quarantine import Quarantine
from llm.data.remote import CacheConfig
from llm.data.stream import Document, TokenStream, cut_of, documents
from llm.data.tape import NOT_SCORED
from llm.data.tokenizer import DOCUMENT_TOKEN, load_tokenizer

__all__ = [
    "DOCUMENT_TOKEN",
    "NOT_SCORED",
    "Batch",
    "Batches",
    "CacheConfig",
    "DataConfig",
    "Document",
    "HeldOutBatches",
    "Manifest",
    "Quarantine",
    "TokenStream",
    "cut_of",
    "documents",
    "load_tokenizer",
]
