"""Killed with SIGKILL at any moment and resumed by other ranks, threads and batches, the stream goes on as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm.data import Batch, Manifest
from tests.checkout import ROOT
from tests.data.test_stream import rows_of, stream_of

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(110)]

# all ranks of a start, one step after the other, until it is killed; a step counts once its line is whole
READER = """
import json, sys
from pathlib import Path
from llm.data import Batches, Manifest
from tests.data.test_stream import joined, rows_of, stream_of

settings = json.loads(sys.argv[1])
out = open(settings["log"], "a")
stream = stream_of(Manifest.load(settings["data"]), packing=settings["packing"], workers=settings["workers"], prefetch=2)
batch, sequence = settings["batch"], settings["sequence"]
ranks = [
    [Batches(stream, batch, rank, settings["ranks"], 2, settings["consumed"], (part, sequence)) for part in range(sequence)]
    for rank in range(settings["ranks"])
]
while True:
    rows = []
    for readers in ranks:
        rows += rows_of([joined(list(parts)) for parts in zip(*(next(reader) for reader in readers))])
    state = ranks[0][0].state()
    line = json.dumps({"state": state, "rows": [row.hex() for row in rows]})
    out.write(line + chr(10))
    out.flush()
"""


def last_state(log: Path) -> int:
    """consumed, after a half-written line is cut off as a real log's would be."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []
    log.write_text("".join(whole))
    return json.loads(whole[-1])["state"]["consumed"] if whole else 0


@pytest.mark.parametrize("packing", ["concat", pytest.param("bestfit", marks=pytest.mark.slow)])
def test_killed_anywhere_it_goes_on(dataset: Manifest, tmp_path: Path, packing: str):
    rng, log = random.Random(packing), tmp_path / "log"
    for _ in range(5):
        settings = {
            "data": str(dataset.root),
            "log": str(log),
            "packing": packing,
            "consumed": last_state(log),
            "batch": rng.choice([8, 12, 16]),
            "ranks": rng.choice([1, 2, 3, 4, 8]),
            "sequence": rng.choice([1, 2]),
            "workers": rng.choice([0, 1, 2, 3]),
        }
        process = subprocess.Popen([sys.executable, "-c", READER, json.dumps(settings)], cwd=ROOT)
        begun, size = time.monotonic(), log.stat().st_size
        while log.stat().st_size == size and process.poll() is None and time.monotonic() < begun + 60:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None, "the reader ended by itself"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    total = last_state(log)
    assert total > 50
    consumed, plain = 0, stream_of(dataset, packing=packing)
    for line in log.read_text().splitlines():
        step = json.loads(line)
        batch = step["state"]["consumed"] - consumed
        due = rows_of([Batch.from_rows(plain.rows(consumed + np.arange(batch)))])
        assert Counter(bytes.fromhex(row) for row in step["rows"]) == Counter(due)
        consumed += batch
    assert consumed == total
