"""Encoding by tiktoken gives the ids of `tokenizers`, on every text, or is not done."""

import json
import pickle
import random
import sysconfig
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from data_prep import byte_level
from data_prep import encoder as encoder_module
from data_prep.bpe import train_bpe
from data_prep.encoder import LONG_SPACE, Encoder
from llm.data.tokenizer import parse_tokenizer
from llm.errors import ConfigError, DataError
from tests.data import tokenizers_of_all_kinds as kinds

TRANSLATABLE, UNTRANSLATABLE = kinds.translatable(), kinds.untranslatable()
FRAGMENTS = [
    *(
        "the",
        " the",
        "fox",
        "ab",
        "a",
        "A",
        "'s",
        "'LL",
        "'ſ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "1",
        "12",
        "½",
        ".",
    ),
    *(
        "--",
        "=",
        "e\u0301",
        "é",
        "ǅ",
        "日本",
        "👍🏽",
        "\x00",
        "\u200d",
        "<|endoftext|>",
        "<tool>",
        "/",
        "٣",
        "ʰ",
        "lazyfox",
        "\u0378",
    ),
]
texts = st.text() | st.lists(st.sampled_from(FRAGMENTS) | st.characters(exclude_categories=["Cs"])).map("".join)


def dump(content: dict) -> bytes:
    return json.dumps(content).encode()


@cache
def both(name: str) -> tuple[Encoder, Tokenizer]:
    """The encoder, and the library loaded by itself as the oracle."""
    content = dump(TRANSLATABLE[name] if name in TRANSLATABLE else UNTRANSLATABLE[name][0])
    oracle = Tokenizer.from_str(content.decode())
    oracle.encode_special_tokens = True
    return Encoder(content), oracle


@pytest.mark.parametrize("name", TRANSLATABLE)
@settings(deadline=None)
@given(text=texts)
def test_ids_are_those_of_tokenizers(name: str, text: str):
    encoder, oracle = both(name)
    assert encoder.name == "tiktoken", encoder.why
    assert encoder.encode([text]) == [oracle.encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize("name", TRANSLATABLE)
def test_tiktoken_alone_gives_them_on_real_files(name: str, monkeypatch: pytest.MonkeyPatch):
    encoder, oracle = both(name)
    files = [path.read_text() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::40]]
    expected = [oracle.encode(text, add_special_tokens=False).ids for text in files]
    monkeypatch.setattr(encoder, "_by_tokenizers", lambda texts: [[-1] for _ in texts])
    assert sum(a == b for a, b in zip(encoder.encode(files), expected, strict=True)) >= len(files) - 1


@pytest.mark.parametrize("name", UNTRANSLATABLE)
@settings(deadline=None)
@given(text=texts)
def test_other_tokenizers_are_left_to_their_library(name: str, text: str):
    encoder, oracle = both(name)
    assert encoder.name == "tokenizers"
    assert UNTRANSLATABLE[name][1] in encoder.why
    assert encoder.encode([text, text]) == [oracle.encode(text, add_special_tokens=False).ids] * 2


@pytest.mark.parametrize("name", ["gpt-2", "llama-3", "gpt-4o", "starcoder"])
def test_characters_of_all_classes_are_cut_alike(name: str):
    rng = random.Random(name)
    characters = [chr(code) for code in (*range(0x3000), *rng.sample(range(0x3000, 0xD800), 3000), *range(0x1F300, 0x1F700))]
    both(name)[0].check(["".join(f"a{c}b 1{c}2 {c}{c} '{c}\n{c} -{c}_" for c in characters[k::20]) for k in range(20)])


def test_characters_that_the_two_libraries_know_differently_are_found():
    assert {"\u200c", "\u200d"} <= byte_level._unequal(r"\w")
    assert byte_level.unequal_characters(byte_level.GPT2) == frozenset()


def test_texts_that_the_proof_does_not_cover_are_left_to_tokenizers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoder_module, "unequal_characters", lambda pattern: frozenset("♥é"))
    encoder = Encoder(dump(TRANSLATABLE["qwen-2"]))
    assert encoder.name == "tiktoken"
    monkeypatch.setattr(encoder, "_by_tokenizers", lambda texts: [text.upper() for text in texts])
    left = ["♥", "an é", "e\u0301", "<tool>", "new \u0378"]
    assert encoder.encode(left) == [text.upper() for text in left]
    assert all(isinstance(ids, list) for ids in encoder.encode(["\u00e8 a b w", "<tool", " "]))
    monkeypatch.setattr(encoder_module, "unequal_characters", lambda pattern: frozenset("x"))
    assert Encoder(dump(TRANSLATABLE["qwen-2"])).why == "the libraries' regular expressions differ in ASCII"


def test_pairs_that_are_not_on_the_list_are_not_merged():
    content = json.loads(json.dumps(TRANSLATABLE["gpt-2"]))
    model = content["model"]
    merges = [["y", "z"], ["yz", "w"], ["x", "yzw"], ["x", "y"], ["xy", "z"]]
    for order in ([3, 0, 1, 2, 4], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        model["merges"] = [merges[k] for k in order]
        model["vocab"] = {token: id for token, id in model["vocab"].items() if len(token) == 1}
        model["vocab"] |= {"".join(pair): 1000 + k for k, pair in enumerate(model["merges"])}
        encoder, oracle = Encoder(dump(content)), Tokenizer.from_str(json.dumps(content))
        for text in ("xyzw", "xyz", "yzw", "wxyzwx", "xxyzwzw"):
            assert encoder.encode([text])[0] == oracle.encode(text).ids, (order, text)


@settings(deadline=None)
@given(merges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=24), text=st.text("abc", max_size=40))
def test_any_list_of_merges(merges: list[tuple[int, int]], text: str):
    tokens, pairs = ["a", "b", "c"], []
    for a, b in merges:
        pair = (tokens[a % len(tokens)], tokens[b % len(tokens)])
        if len("".join(pair)) <= 12 and pair not in pairs:
            pairs.append(pair)
            tokens.append("".join(pair))
    content = json.loads(json.dumps(TRANSLATABLE["gpt-2"]))
    model = content["model"]
    model["merges"] = [list(pair) for pair in pairs]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if len(token) == 1}
    model["vocab"] |= {token: 1000 + k for k, token in enumerate(dict.fromkeys(tokens[3:]))}
    model["ignore_merges"] = len(text) % 2 == 0
    encoder, oracle = Encoder(dump(content)), Tokenizer.from_str(json.dumps(content))
    assert encoder.encode([text])[0] == oracle.encode(text).ids


def test_special_tokens_in_text_stay_text():
    for name in TRANSLATABLE:
        encoder, oracle = both(name)
        special = {oracle.token_to_id(token) for token in ("<|endoftext|>", "<|pad|>")}
        for text in ("<|endoftext|>", "x<|endoftext|>\n<|pad|>", "<|pad|>"):
            assert not special & set(encoder.encode([text])[0])


def test_a_document_token_that_text_can_make_is_refused():
    content = json.loads(json.dumps(TRANSLATABLE["gpt-2"]))
    content["added_tokens"][0]["special"] = False
    with pytest.raises(DataError, match=r"makes the special token <\|endoftext\|> from the text"):
        Encoder(dump(content))
    whole = kinds.trained(kinds.byte_level_only(regex=False), ignore_merges=True)
    whole["model"]["vocab"]["<|endoftext|>"] = whole["added_tokens"][0]["id"]
    with pytest.raises(DataError, match="must never give a special id"):
        Encoder(dump(whole))


def test_dropout_of_training_is_left_out():
    content = TRANSLATABLE["ours"]
    trained = dump({**content, "model": {**content["model"], "dropout": 0.5}})
    for engine in ("auto", "tokenizers"):
        assert Encoder(trained, engine).encode(kinds.TEXTS) == Encoder(dump(content), "tokenizers").encode(kinds.TEXTS)


def test_a_tokenizer_that_cannot_encode_all_text_is_refused():
    with pytest.raises(DataError, match=r"cannot encode all text \(.*UNK.*\); give it a token for what it does not know"):
        Encoder(Tokenizer(models.WordLevel({"a": 0}, unk_token="?")).to_str().encode())
    with pytest.raises(DataError, match=r"empty\.json holds no token"):
        parse_tokenizer(Tokenizer(models.BPE()).to_str().encode(), "empty.json")


def test_settings_of_length_are_ignored():
    tokenizer = Tokenizer.from_str(json.dumps(UNTRANSLATABLE["prefix space"][0]))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    (ids,) = Encoder(tokenizer.to_str().encode()).encode(["the quick brown fox jumps over the lazy dog " * 9])
    assert len(ids) > 8


@pytest.mark.parametrize(("name", "n"), [("gpt-2", 1_000_000), ("llama-3", 300_000), ("whole texts", 300_000)])
def test_long_pieces_take_no_quadratic_time(name: str, n: int):
    encoder, oracle = both(name)
    rng = random.Random(0)
    for text in ("a" * n, rng.randbytes(n // 2).hex(), " " * n + "x", "\t \n" * (n // 3), "-" * n):
        start = time.process_time()
        (ids,) = encoder.encode([text])
        assert time.process_time() - start < 20
        assert oracle.decode(ids) == text


def test_white_space_that_is_too_long_for_tiktoken_is_left_to_tokenizers():
    for text in (" " * LONG_SPACE, "x" * 77_777 + "\n \t" * (LONG_SPACE // 3 + 1) + "y"):
        assert encoder_module._has_long_space(text)
    assert not encoder_module._has_long_space((" " * (LONG_SPACE - 1) + "x") * 3)


def test_an_encoder_travels_to_other_processes():
    encoder = pickle.loads(pickle.dumps(both("llama-3")[0]))
    assert encoder.name == "tiktoken"
    assert encoder.encode(["the fox"]) == both("llama-3")[0].encode(["the fox"])


def test_tiktoken_can_be_left_out():
    encoder = Encoder(dump(TRANSLATABLE["gpt-2"]), "tokenizers")
    assert (encoder.name, encoder.why) == ("tokenizers", "it was asked for")
    assert encoder.encode(["the fox", ""]) == both("gpt-2")[0].encode(["the fox", ""])
    with pytest.raises(ConfigError, match=r"engine \(fast\) is unknown"):
        Encoder(dump(TRANSLATABLE["gpt-2"]), "fast")


def test_other_ids_are_an_error_and_no_change_of_sides():
    encoder = Encoder(dump(TRANSLATABLE["gpt-2"]))
    encoder._translation.encoding._core_bpe = both("llama-3")[0]._translation.encoding._core_bpe
    with pytest.raises(DataError, match=r"must give the ids of tokenizers and differs at '.*' \(token \d+ of a text of \d+"):
        encoder.check(["the quick brown fox  \n1234567890  \n" * 9])


def test_training_is_deterministic_and_knows_every_byte():
    order = list(kinds.TEXTS)
    first = train_bpe(order, 600)
    random.Random(1).shuffle(order)
    assert train_bpe(iter(order), 600) == first
    ids = json.loads(first)["model"]["vocab"]
    assert sorted(ids.values()) == list(range(600))
    encoder = Encoder(first)
    every_byte = [bytes([a]).decode("latin-1") for a in range(256)] + ["\U0010ffff", "\ud7ff", "\u07ff"]
    tokenizer = Tokenizer.from_str(first.decode())
    assert [tokenizer.decode(found) for found in encoder.encode(every_byte)] == every_byte
    assert all(a != b for a, b in pairwise(encoder.encode(["the", " the"])))
