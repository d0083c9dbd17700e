"""The benchmark of reading: its sides hand out the same documents, and what misses its floor or ceiling is named."""

from pathlib import Path

import numpy as np
import pytest
import webdataset

from benchmarks.data import ASKED, OURS, PEER, measure, shortfalls, write
from llm.data import documents


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_both_sides_read_the_same_documents(tmp_path: Path):
    manifest = write(tmp_path / "dataset", 30_000)
    theirs = webdataset.WebDataset(str(tmp_path / "npy.tar"), shardshuffle=False).decode()
    for ours, sample in zip(documents(manifest, "train"), theirs, strict=True):
        assert np.array_equal(ours.tokens, sample["npy"])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_small_run_has_every_figure(tmp_path: Path):
    found = measure(tmp_path, 200_000, rounds=1)
    assert set(ASKED) <= set(found)
    assert all(value > 0 for value in found.values())
    assert found["times webdataset"] == found["Mtok per CPU second"] / found[f"{PEER}, Mtok per CPU second"]
    assert found["Mtok per CPU second"] == found[f"{OURS}, Mtok per CPU second"]


def test_what_misses_is_named():
    good = {name: asked for name, (asked, _) in ASKED.items()}
    assert shortfalls(good, 1.0) == []
    missed = shortfalls(good | {"times webdataset": 2.0, "resume at 50 %, s": 0.3}, 1.0)
    assert missed == ["times webdataset is 2, at least 3 is asked for", "resume at 50 %, s is 0.3, at most 0.2 is asked for"]
    assert shortfalls(good | {"times webdataset": 2.2, "resume at 50 %, s": 0.27}, 0.7) == []
