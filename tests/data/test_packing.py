"""Packing: whole documents, in order, without waste, and plans that are read back or refused."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.packing import Pieces, bestfit
from llm.data.plan import Plan, load_plan, make_plan, plan_path
from llm.errors import ConfigError, DataError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def realistic(documents: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of web text: log-normal, median 700 tokens, mean 1,500, a tail towards 100,000."""
    return np.clip(np.random.default_rng(seed).lognormal(6.6, 1.2, documents), 1, None).astype(np.int64)


def tokens_of(pieces: Pieces) -> list[int]:
    """Places on the tape."""
    return [at for offset, length in zip(*pieces, strict=True) for at in range(offset, offset + length)]


def pieces_of(packing, i: int) -> Pieces:
    here = slice(packing.first[i], packing.first[i + 1])
    return Pieces(packing.pieces.offset[here], packing.pieces.length[here])


@given(lengths=LENGTHS, T=st.integers(1, 50))
def test_bestfit_holds_every_token_once_and_cuts_nothing_that_fits(lengths: list[int], T: int):
    packing = bestfit(np.array(lengths), T)
    assert sorted(tokens_of(packing.pieces)) == list(range(sum(lengths)))
    rooms = [T - int(pieces_of(packing, i).length.sum()) for i in range(len(packing))]
    assert min(rooms) >= 0
    ends = np.cumsum(lengths)
    starts = ends - lengths
    document = np.searchsorted(ends, packing.pieces.offset, side="right")
    for d, n in enumerate(lengths):
        mine = document == d
        begins, sizes = packing.pieces.offset[mine] - starts[d], packing.pieces.length[mine]
        # whole sequences first, then what is left of it
        assert begins.tolist() == list(range(0, n, T))
        assert sizes.tolist() == [min(T, n - begin) for begin in begins]
    # any-fit: at most one sequence is at most half full
    assert sum(2 * room >= T for room in rooms) <= 1
    for i in range(len(packing)):
        assert (np.diff(pieces_of(packing, i).offset) > 0).all()


def best_fit_by_hand(sizes: list[int], T: int) -> int:
    """Sequences that the plain, quadratic definition opens."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(T - size)
    return len(rooms)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_bestfit_is_best_fit_decreasing(lengths: list[int]):
    assert len(bestfit(np.array(lengths), 40)) == best_fit_by_hand(lengths, 40)


@pytest.mark.parametrize("T", [1024, 2048, 8192, 32768])
def test_bestfit_is_tight_and_quick_on_realistic_lengths(T: int):
    lengths = realistic(30_000)
    tries = []
    for _ in range(3):
        start = time.perf_counter()
        packing = bestfit(lengths, T)
        tries.append(time.perf_counter() - start)
    padding = 1 - lengths.sum() / (len(packing) * T)
    speed = lengths.sum() / min(tries)
    print(f"T={T}: padding {100 * padding:.4f} %, {speed / 1e6:.0f} M tokens/s")
    assert padding < 0.005
    assert speed > 100e6


def test_bestfit_refuses_empty_documents_and_sequences():
    with pytest.raises(DataError, match=r"document 1 has 0 tokens where every document has one"):
        bestfit(np.array([3, 0]), 8)
    with pytest.raises(ConfigError, match=r"data\.sequence_length \(0\) must be at least 1"):
        bestfit(np.array([3]), 0)
    assert len(bestfit(np.empty(0, dtype=np.int64), 8)) == 0


# plans


def plan_of(T: int = 64) -> Plan:
    rng = np.random.default_rng(0)
    return make_plan("hash", "train", T, [(f"shard-{k}", rng.integers(1, 200, 30 + k)) for k in range(4)])


def test_a_plan_is_read_back_sequence_by_sequence(tmp_path: Path):
    plan, path = plan_of(), plan_path(tmp_path, "train", 64)
    plan.write(path)
    loaded = load_plan(path, "hash", "train", 64)
    assert path.name == "train.bestfit-64.plan"
    assert (len(loaded), loaded.groups, loaded.padding) == (len(plan), plan.groups, plan.padding)
    rng, i = np.random.default_rng(0), 0
    for group in range(4):
        packing = bestfit(rng.integers(1, 200, 30 + group), 64)
        for k in range(len(packing)):
            assert loaded.pieces(i)[0] == group
            assert all(np.array_equal(a, b) for a, b in zip(loaded.pieces(i)[1], pieces_of(packing, k), strict=True))
            i += 1
    assert i == len(loaded)
    again = tmp_path / "again"
    plan_of().write(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_plan_of_very_long_tapes_keeps_wide_offsets(tmp_path: Path):
    plan = make_plan("hash", "train", 1 << 33, [("a", np.array([3 << 32, 5]))])
    plan.write(tmp_path / "wide")
    assert load_plan(tmp_path / "wide", "hash", "train", 1 << 33).pieces(1)[1].offset.tolist() == [1 << 33, 3 << 32]


def test_a_plan_without_documents_is_empty(tmp_path: Path):
    make_plan("hash", "train", 8, []).write(tmp_path / "none")
    assert len(load_plan(tmp_path / "none", "hash", "train", 8)) == 0


def test_every_flip_and_cut_of_a_plan_is_named(tmp_path: Path):
    rng, path = random.Random(0), tmp_path / "train.plan"
    plan_of().write(path)
    whole = path.read_bytes()
    for k in range(600):
        damaged = bytearray(whole)
        if k % 3 == 0:
            damaged = damaged[: rng.randrange(len(whole))]
        elif k % 50 == 1:
            damaged += bytes([rng.randrange(256)])
        else:
            # the first bytes, where lengths and the header lie, more often
            damaged[rng.randrange(40 if k % 2 else len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train\.plan is damaged: its checksum differs; delete it"):
            load_plan(path, "hash", "train", 64)
    path.write_bytes(whole)
    assert len(load_plan(path, "hash", "train", 64)) == len(plan_of())


@pytest.mark.parametrize(
    ("asked", "name"), [(("x", "train", 64), "manifest"), (("hash", "t", 64), "split"), (("hash", "train", 65), "seq")]
)
def test_a_plan_of_something_else_is_refused(tmp_path: Path, asked: tuple[str, str, int], name: str):
    plan_of().write(tmp_path / "plan")
    with pytest.raises(DataError, match=rf"plan .* is for {name}.*, not "):
        load_plan(tmp_path / "plan", *asked)


def test_a_missing_plan_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"plan .*none does not exist"):
        load_plan(tmp_path / "none", "hash", "train", 64)


def test_a_plan_is_small_tight_and_read_quickly(tmp_path: Path):
    plan = make_plan("hash", "train", 2048, [(str(k), realistic(20_000, k)) for k in range(4)])
    plan.write(tmp_path / "plan")
    share = (tmp_path / "plan").stat().st_size / (2 * plan.length.sum())
    loaded = load_plan(tmp_path / "plan", "hash", "train", 2048)
    start = time.perf_counter()
    for i in range(1000):
        loaded.pieces(i * 7919 % len(loaded))
    each = (time.perf_counter() - start) / 1000
    print(f"plan: {100 * plan.padding:.4f} % padding, {100 * share:.2f} % of the tokens' bytes, {1e6 * each:.1f} us a sequence")
    assert plan.padding < 0.005
    assert share < 0.01
    assert each < 0.0005
