"""Deduplication: what exact comparison of all pairs says, the same result for every way of reading, and memory that stays."""

import random
import tracemalloc
from collections import Counter
from itertools import combinations
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import signatures
from data_prep.dedup import EXACT, NEAR, DedupConfig, Duplicates, find_duplicates
from data_prep.signatures import Document
from data_prep.words import normalise
from llm.errors import ConfigError, DataError

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def word(k: int) -> str:
    """Words without digits, which would all be one."""
    return "".join("abcdefghij"[int(digit)] for digit in str(k))


def words(start: int, count: int) -> list[str]:
    return [word(k) for k in range(start, start + count)]


def reasons(found: Duplicates, documents: list[Document]) -> dict[str, str]:
    return {d.id: reason for d in documents if (reason := found.reason(d.id))}


def shingles(text: str, n: int) -> set[tuple[bytes, ...]]:
    normal = normalise(text).split()
    return {tuple(normal[k : k + n]) for k in range(len(normal) - n + 1)}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def edited(text: str, changes: int, rng: random.Random) -> str:
    found = text.split()
    for _ in range(changes):
        found[rng.randrange(len(found))] = word(rng.randrange(10**9))
    return " ".join(found)


def collection(originals: int = 40, seed: int = 0) -> list[Document]:
    """Texts with copies, edits light and heavy, short texts and empty ones, over three sources in no order."""
    rng = random.Random(seed)
    texts = ["", "", "one", "one", "One", "two words", "two words", " ".join(words(7, 4)), " ".join(words(7, 4)).title()]
    for k in range(originals):
        text = " ".join(word(rng.randrange(10**6)) for _ in range(150))
        texts += [text, text.upper() if k % 3 else text, *(edited(text, changes, rng) for changes in (1, 2, 5, 20, 60))]
    rng.shuffle(texts)
    return [Document(f"{rng.randrange(10**9):09d}", f"source{k % 3}", text) for k, text in enumerate(texts)]


def test_pairs_above_are_found_and_texts_without_a_like_are_kept(tmp_path: Path):
    documents, config = collection(), DedupConfig()
    dropped = reasons(find_duplicates(documents, config, tmp_path), documents)
    sets = {d.id: shingles(d.text, config.words) for d in documents}
    texts = Counter(d.text for d in documents)
    nearest = dict.fromkeys(sets, 0.0)
    for a, b in combinations(documents, 2):
        similarity = jaccard(sets[a.id], sets[b.id])
        nearest[a.id], nearest[b.id] = max(nearest[a.id], similarity), max(nearest[b.id], similarity)
        # a pair is missed with probability 2e-7 at 0.95
        if similarity >= 0.95 or a.text == b.text:
            assert max(a.id, b.id) in dropped
    # and taken for one with probability 4e-5 at 0.2
    assert all(nearest[d.id] > 0.2 or texts[d.text] > 1 for d in documents if d.id in dropped)
    assert sum(similarity >= 0.95 for similarity in nearest.values()) > 50


def test_pairs_are_found_as_often_as_the_curve_says(tmp_path: Path):
    config, pairs = DedupConfig(words=1), 400
    for similarity in (0.4, 0.6, 0.7, 0.8, 0.9):
        alike = round(200 * similarity)
        apart = (200 - alike) // 2
        documents = []
        for k in range(pairs):
            every = words(10**6 + 1000 * k, 200)
            first, second = every[: alike + apart], every[:alike] + every[alike + apart :]
            documents += [Document(f"{k}a", "s", " ".join(first)), Document(f"{k}b", "s", " ".join(second))]
        rate = len(find_duplicates(documents, config, tmp_path)) / pairs
        p = config.probability(similarity)
        # values of one signature are not quite independent, which makes the curve a little steeper
        assert abs(rate - p) < 4 * sqrt(p * (1 - p) / pairs) + 0.02, (similarity, rate, p)


def test_the_curve_is_the_published_one():
    assert [round(DedupConfig().probability(s), 3) for s in (0.0, 0.5, 0.75, 0.8, 0.9, 1.0)] == [0, 0.053, 0.772, 0.924, 1.0, 1]


@given(texts=st.lists(st.text() | st.sampled_from(["", "x", "é", "e\u0301"]), max_size=30))
@same_folder
def test_exact_duplicates_are_those_of_a_dictionary(tmp_path: Path, texts: list[str]):
    documents = [Document(f"{k:03d}", "s", text) for k, text in enumerate(texts)]
    found = find_duplicates(documents, DedupConfig(near=False, partitions=3), tmp_path)
    assert reasons(found, documents) == {d.id: EXACT for k, d in enumerate(documents) if d.text in texts[:k]}
    assert [d.text for d in found.kept(documents)] == list(dict.fromkeys(texts))


@given(order=st.randoms(use_true_random=False), partitions=st.integers(1, 70), batch=st.integers(1, 400))
@settings(same_folder, max_examples=8)
def test_order_partitions_and_batches_change_nothing(tmp_path: Path, order: random.Random, partitions: int, batch: int):
    documents = collection(originals=12)
    expected = find_duplicates(documents, DedupConfig(), tmp_path)
    shuffled = order.sample(documents, len(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signatures, "DOCUMENTS", batch)
        found = find_duplicates(shuffled, DedupConfig(partitions=partitions), tmp_path)
    assert found.report.to_json() == expected.report.to_json()
    assert reasons(found, documents) == reasons(expected, documents)


@pytest.mark.multirank
@pytest.mark.timeout(240)
def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = collection(originals=12)
    expected = find_duplicates(documents, DedupConfig(), tmp_path)
    monkeypatch.setattr(signatures, "DOCUMENTS", 10)
    found = find_duplicates(iter(documents), DedupConfig(), tmp_path, processes=3)
    assert found.report.to_json() == expected.report.to_json()
    assert reasons(found, documents) == reasons(expected, documents)


def test_the_lowest_id_stays_and_drops_have_their_reason(tmp_path: Path):
    text, other = " ".join(words(100, 80)), " ".join(words(900, 80))
    documents = [
        Document("c", "web", text),
        Document("b", "books", text.upper()),
        Document("d", "web", text.upper()),
        Document("a", "code", f"{text}!"),
        Document("e", "web", other),
        Document("f", "code", text),
    ]
    found = find_duplicates(documents, DedupConfig(), tmp_path)
    assert reasons(found, documents) == {"b": NEAR, "c": NEAR, "d": EXACT, "f": EXACT}
    assert [d.id for d in found.kept(documents)] == ["a", "e"]
    assert len(found) == 4
    report = found.report
    assert {name: (c.documents, c.exact, c.near) for name, c in report.sources.items()} == {
        "web": (3, 1, 1),
        "books": (1, 0, 1),
        "code": (2, 1, 0),
    }
    assert report.sources["web"].exact_bytes == report.sources["web"].near_bytes == len(text)
    assert (dict(report.sizes), report.largest) == ({5: 1}, [(5, "a")])
    assert sorted(report.pairs, key=str) == [{"kept": "a", "dropped": d, "similarity": 1.0} for d in "bc"]


def test_similarities_of_examples_are_estimates_of_the_exact_ones(tmp_path: Path):
    documents = collection(originals=20, seed=1)
    texts = {d.id: shingles(d.text, 5) for d in documents}
    pairs = find_duplicates(documents, DedupConfig(), tmp_path).report.pairs
    assert len(pairs) == 10
    for pair in pairs:
        exact = jaccard(texts[pair["kept"]], texts[pair["dropped"]])
        # five standard deviations of 112 coins
        assert abs(pair["similarity"] - exact) < 5 * sqrt(0.25 / 112)


def test_texts_shorter_than_a_shingle_are_compared_exactly_only(tmp_path: Path):
    texts = ["one", "One", "one", "", "", "a b c d", "A b c d", "a b c d e", "A b c d e", "東京", "東京"]
    documents = [Document(f"{k:02d}", "s", text) for k, text in enumerate(texts)]
    found = find_duplicates(documents, DedupConfig(), tmp_path)
    assert reasons(found, documents) == {"02": EXACT, "04": EXACT, "08": NEAR, "10": EXACT}


def test_near_duplicates_are_found_in_every_script(tmp_path: Path):
    rng = random.Random(0)
    for name, letters in {"Greek": "αβγδεζηθικλμ", "Han": "东西南北中发白一二三四五六七八九", "accents": "àéîõüçñšž"}.items():
        text = "".join(rng.choice(letters + " " * (name != "Han") * 3) for _ in range(2000))
        documents = [Document("1", "s", text), Document("2", "s", f"{text[:1000]}X{text[1000:]}"), Document("3", "s", text[::-1])]
        assert reasons(find_duplicates(documents, DedupConfig(), tmp_path), documents) == {"2": NEAR}, name


def test_odd_ids_are_told_apart(tmp_path: Path):
    ids = ["", "\n", "a\nb", "ü", "\udcff", "x" * 1000]
    documents = [Document(id, "s", "text") for id in ids]
    found = find_duplicates(documents, DedupConfig(), tmp_path)
    assert [d.id for d in found.kept(documents)] == [min(ids)]
    assert found.reason("unknown") is None


def test_one_id_for_two_copies_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"document id \(a\) names two documents; give every document an id of its own"):
        find_duplicates([Document("a", "s", "text"), Document("a", "s", "text")], DedupConfig(), tmp_path)


def test_no_documents_and_errors_leave_no_files(tmp_path: Path):
    assert len(find_duplicates([], DedupConfig(), tmp_path)) == 0

    def broken():
        yield Document("a", "s", "text")
        raise DataError("the source ends early")

    with pytest.raises(DataError, match="ends early"):
        find_duplicates(broken(), DedupConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_grows_by_a_few_bytes_per_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signatures, "DOCUMENTS", 20)
    vocabulary = words(0, 1000)

    def peak(count: int) -> int:
        rng = random.Random(0)
        documents = (Document(f"{k:06d}", "s", " ".join(rng.choices(vocabulary, k=250))) for k in range(count))
        tracemalloc.start()
        find_duplicates(documents, DedupConfig(partitions=16), tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    small, large = peak(100), peak(2000)
    # of text, signature and keys a document has 1,800 bytes
    assert large - small < 1900 * 48


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exact": False, "near": False}, r"dedup\.exact and dedup\.near \(both false\) leave nothing to look for; set one"),
        ({"words": 0}, r"dedup\.words \(0\) must be at least 1"),
        ({"bands": 0}, r"dedup\.bands \(0\) must be at least 1"),
        ({"rows": -1}, r"dedup\.rows \(-1\) must be at least 1"),
        ({"partitions": 513}, r"dedup\.partitions \(513\) are files open at once; use at most 512"),
        ({"seed": -1}, r"dedup\.seed \(-1\) must be an integer of 64 bits"),
    ],
)
def test_settings_out_of_bounds_are_refused(tmp_path: Path, values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        find_duplicates([], DedupConfig(**values), tmp_path)
