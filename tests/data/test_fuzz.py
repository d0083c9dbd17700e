"""A thousand damages, each a flipped byte or a cut, in every file of a dataset: none passes, none ends in a library's traceback."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.verify import verify
from llm.data import Manifest, TokenStream, documents
from llm.errors import DataError
from tests.data.test_stream import stream_of

CASES = 1000
# what training reads; damage elsewhere in a tar is `verify`'s to find
READ = ("tokens.bin", "doc_ends.idx", "text_ends.idx", "crc.bin")


def once(stream: TokenStream) -> np.ndarray:
    """Indices that read every sequence once."""
    places = stream.order.places(np.arange(10**4))
    found = {(place.source, place.sequence): i for i, place in enumerate(places)}
    assert len(found) == len(stream)
    return np.array(list(found.values()))


def read(folder: Path, indices: dict[str, np.ndarray]) -> None:
    """All that training and evaluation read of a dataset. indices: by packing."""
    manifest = Manifest.load(folder)
    for split in sorted({shard.split for shard in manifest.shards}):
        for _ in documents(manifest, split):
            pass
    for packing, once_each in indices.items():
        stream_of(manifest, packing=packing, sequence_length=64).rows(once_each)


def caught(action, *arguments) -> str | None:
    """The error's sentence; None: there was none. Anything but a DataError goes through."""
    try:
        action(*arguments)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.timeout(300)
def test_every_damage_is_caught_and_named(make_dataset, tmp_path: Path):
    manifest = make_dataset(tmp_path / "d", documents=60)
    folder, rng = manifest.root, random.Random(0)
    indices = {packing: once(stream_of(manifest, packing=packing, sequence_length=64)) for packing in ("concat", "bestfit")}
    read(folder, indices)
    verify(manifest)
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    assert {path.suffix for path in files} == {".tar", ".json", ".plan"}
    found: Counter[str] = Counter()
    for case in range(CASES):
        path = rng.choice(files)
        whole = path.read_bytes()
        at, cut = rng.randrange(len(whole)), case % 4 == 0
        damaged = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :]
        path.write_bytes(damaged)
        shard = next((shard for shard in manifest.shards if shard.path == path.name), None)
        needed = shard is None or cut or any(0 <= at - shard.members[name].offset < shard.members[name].bytes for name in READ)
        said = caught(read, folder, indices)
        where = "reading"
        if said is None and not needed:
            said, where = caught(verify, Manifest.load(folder)), "verify"
        assert said is not None, f"{path.name}: {'cut at' if cut else 'flipped'} byte {at} of {len(whole)}"
        assert path.name in said, said
        found[f"{'cut' if cut else 'flip'} in {path.suffix}, found by {where}"] += 1
        path.write_bytes(whole)
    print(dict(found))
    assert sum(found.values()) == CASES
    assert caught(read, folder, indices) is None
