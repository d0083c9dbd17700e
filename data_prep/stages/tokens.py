"""Stage 4: the documents that are left become ids, part by part, those for training before those held out."""

import io
from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np

from data_prep.encoder import Encoder
from data_prep.stages.duplicates import kept_documents
from data_prep.stages.tokenizer import SPLITS, split
from data_prep.stages.work import Work
from data_prep.workers import Track, Workers
from llm.data.shard import token_dtype
from llm.data.write import tokenizer_info
from llm.whole_file import write_bytes

# of the texts that are encoded at once
CHARACTERS = 1 << 20
# of each part and split that are encoded by `tokenizers` too, to see that ids agree
CHECKED = 4


def run(validation: float, work: Work, workers: Workers, track: Track) -> None:
    """Write of each part the ids, then the lengths."""
    left = [part for part in range(len(work.sources)) if not work.lengths(part).exists()]
    for _ in track(workers.in_order(partial(encode_part, work=work, validation=validation), left), len(left)):
        pass


def encode_part(part: int, work: Work, validation: float) -> None:
    encoder, document_token, dtype = _encoder(work.tokenizer.read_bytes())
    texts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for _, text in kept_documents(work, part):
        texts[split(text, validation)].append(text)
    pieces, lengths = [], {}
    for name, mine in texts.items():
        encoder.check(mine[:CHECKED])
        ids = [[document_token, *ids] for batch in _batches(mine) for ids in encoder.encode(batch)]
        pieces += [np.array(document, dtype=dtype).tobytes() for document in ids]
        lengths[name] = np.array([len(document) for document in ids], dtype=np.int64)
        lengths[f"{name}_text"] = np.array([len(text.encode()) for text in mine], dtype=np.int64)
    write_bytes(work.tokens(part), b"".join(pieces))
    buffer = io.BytesIO()
    np.savez(buffer, **lengths)
    write_bytes(work.lengths(part), buffer.getvalue())


def lengths(work: Work, part: int, name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Of a part's documents of a split, int64: their tokens, the bytes of their text; and where in the part's tokens they start."""
    with np.load(work.lengths(part)) as found:
        start = sum(int(found[before].sum()) for before in SPLITS[: SPLITS.index(name)])
        return found[name], found[f"{name}_text"], start


@lru_cache(maxsize=1)
def _encoder(content: bytes) -> tuple[Encoder, int, np.dtype]:
    info = tokenizer_info(content)
    return Encoder(content), info.document_token, token_dtype(info.vocabulary)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
