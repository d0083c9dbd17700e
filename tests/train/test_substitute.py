"""A run on a damaged dataset: refused at the start, or with damaged sequences replaced, counted in its metrics."""

import json
import random
from pathlib import Path

import pytest

from llm.data import Manifest
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.testing import run_ranks
from tests.train.conftest import MODEL, TRAIN, VOCABULARY
from tests.train.test_resume import start


def started(rank: int, words: list[str], on_corrupt: str) -> str:
    return start([*words, f"data.on_corrupt={on_corrupt}", f"name={on_corrupt}"])


@pytest.mark.multirank
def test_a_truncated_shard_stops_the_run_or_is_replaced_and_counted(manifest: Manifest, tmp_path: Path) -> None:
    rng, tokenizer = random.Random(0), manifest.tokenizer_path.read_bytes()
    writer = DatasetWriter(tmp_path / "data", tokenizer, {"text": Source(1.0, "CC0-1.0")}, shard_tokens=800)
    for _ in range(100):
        writer.add("text", "train", [rng.randrange(1, VOCABULARY) for _ in range(60)], 60)
    shard = tmp_path / "data" / writer.finish().shards[1].path
    shard.write_bytes(shard.read_bytes()[:700])
    words = [*MODEL, *TRAIN, f"data.manifest={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}", "train.steps=6"]
    # of several ranks only the first would look, and the others wait for it until their launcher ends them
    stopped = run_ranks(started, 1, words, "stop", timeout=90)[0]
    replaced = run_ranks(started, 2, words, "substitute", timeout=90)[0]
    assert stopped.startswith("DataError: shard ")
    assert "has 700 bytes where the manifest says" in stopped
    assert replaced == "step 6"
    counts = [json.loads(line)["substituted"] for line in (tmp_path / "runs/substitute/metrics.jsonl").read_text().splitlines()]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 6 * 8
