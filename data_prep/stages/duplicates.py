"""Stage 2: which documents repeat others. The workers read and sign the parts; this process joins what they find (`dedup.py`)."""

import json
from functools import partial
from itertools import chain

import numpy as np

from data_prep.dedup import DedupConfig, are_dropped, join_duplicates
from data_prep.signatures import Document, Signed, batches, sign_batch
from data_prep.stages.work import Text, Work, read_documents, save
from data_prep.workers import Track, Workers
from llm.whole_file import write_bytes


def run(config: DedupConfig, work: Work, workers: Workers, track: Track) -> None:
    """Write the hashes of what to drop, then the report."""
    if work.duplicates.exists():
        return
    parts = list(enumerate(work.sources))
    signed = workers.in_order(partial(sign_part, work=work, config=config), parts)
    found = join_duplicates(chain.from_iterable(track(signed, len(parts))), config, work.root)
    write_bytes(work.dropped, found.hashes.tobytes())
    save(work.duplicates, json.loads(found.report.to_json()))


def sign_part(part: tuple[int, str], work: Work, config: DedupConfig) -> list[Signed]:
    number, source = part
    documents = (Document(id, source, text) for id, text in read_documents(work.documents(number)))
    return [sign_batch(batch, config) for batch in batches(documents)]


def kept_documents(work: Work, part: int) -> list[Text]:
    """Of a part, without duplicates where they were looked for."""
    documents = list(read_documents(work.documents(part)))
    if not work.duplicates.exists() or not work.dropped.stat().st_size:
        return documents
    # mapped: the processes of a machine share it
    dropped = are_dropped([document.id for document in documents], np.memmap(work.dropped, dtype=np.uint64, mode="r"))
    return [document for document, goes in zip(documents, dropped.tolist(), strict=True) if not goes]
