"""MinHash signatures of documents in order, in this process or in others, with a bounded number of texts in memory."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import xxhash
from rensa import RMinHash

from data_prep.words import hash_ngrams, normalise
from data_prep.workers import Workers

# of one batch, at most; a single longer document is a batch by itself
DOCUMENTS, CHARACTERS = 256, 1 << 20


class Document(NamedTuple):
    """id: unique among all sources; the lowest one of a cluster of duplicates is kept. text: cleaned."""

    id: str
    source: str
    text: str


class Signatures(Protocol):
    """The settings that make a signature."""

    near: bool
    words: int
    bands: int
    rows: int
    seed: int


class Signed(NamedTuple):
    """A batch of documents without their texts.

    digests: [documents, 2] uint64, the xxh3_128. bytes: [documents], of UTF-8. signatures: [documents, bands * rows] uint32, of no
    columns where only exact duplicates are sought. keys: [documents, bands, 2] uint64. shingled: [documents], has a signature.
    """

    ids: list[str]
    sources: list[str]
    digests: np.ndarray
    bytes: np.ndarray
    signatures: np.ndarray
    keys: np.ndarray
    shingled: np.ndarray


def sign(documents: Iterable[Document], config: Signatures, processes: int = 1) -> Iterator[Signed]:
    """Batches in the order of `documents`, whatever the number of processes."""
    with Workers(processes) as workers:
        yield from workers.in_order(partial(sign_batch, config=config), batches(documents))


def sign_batch(batch: list[Document], config: Signatures) -> Signed:
    texts = [document.text.encode(errors="surrogatepass") for document in batch]
    digests = b"".join(xxhash.xxh3_128_digest(text) for text in texts)
    if config.near:
        signatures, shingled = _signatures([normalise(document.text) for document in batch], config)
    else:
        signatures, shingled = np.empty((len(batch), 0), dtype=np.uint32), np.zeros(len(batch), dtype=bool)
    return Signed(
        ids=[document.id for document in batch],
        sources=[document.source for document in batch],
        digests=np.frombuffer(digests, dtype="<u8").reshape(-1, 2),
        bytes=np.array([len(text) for text in texts]),
        signatures=signatures,
        keys=_keys(signatures, config),
        shingled=shingled,
    )


def _signatures(texts: list[bytes], config: Signatures) -> tuple[np.ndarray, np.ndarray]:
    hashes, ends = hash_ngrams(texts, config.words)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, config.bands * config.rows, config.seed)
    return np.array(matrix.to_rows(), dtype="<u4"), ends[1:] > ends[:-1]


def _keys(signatures: np.ndarray, config: Signatures) -> np.ndarray:
    """The xxh3_128 of each band, seeded by its index so that no two bands share a key."""
    bands = config.bands if signatures.size else 0
    width = 4 * config.rows
    rows = [row.tobytes() for row in signatures]
    keys = (xxhash.xxh3_128_digest(row[k * width : (k + 1) * width], seed=k + 1) for row in rows for k in range(bands))
    return np.frombuffer(b"".join(keys), dtype="<u8").reshape(len(rows), bands, 2)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        if batch and (len(batch) == DOCUMENTS or characters + len(document.text) > CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch
