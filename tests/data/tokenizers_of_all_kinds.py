"""Small tokenizers in the styles of published ones, made by the `tokenizers` library, as the contents of tokenizer.json."""

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_prep import byte_level
from data_prep.bpe import train_bpe
from data_prep.encoder import AWKWARD

LLAMA3, QWEN2, GPT4, NANOCHAT, GPT4O = [pattern for pattern in byte_level.PATTERNS if pattern != byte_level.GPT2]
TEXTS = [
    *AWKWARD,
    *(f"the quick brown fox number {k} jumps over the lazy dog's {'ab' * (k % 7)} {'   ' * (k % 5)}end" for k in range(300)),
    *("日本語のテキスト e\u0301e\u0301 \U0001f44d\U0001f3fd deutsch für über κόσμος",) * 20,
    *("def f(x):\n        return x + 1\n\n",) * 20,
    *("THE QUICK BROWN FOX 1234567890 " + "=" * 32,) * 20,
]


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer, ignore_merges: bool = False, normalizer: Any = None) -> dict[str, Any]:
    """A byte-level BPE of 700 ids, the last of them special, parsed."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    if normalizer:
        tokenizer.normalizer = normalizer
    return json.loads(tokenizer.to_str())


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    steps = [
        pre_tokenizers.Split(Regex(pattern), behavior, invert),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


def byte_level_only(prefix: bool = False, regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level_only()])


def with_all_splits(content: dict[str, Any]) -> dict[str, Any]:
    """Each token by every pair that spells it, as Llama 3's file has it, whose merges were made from tiktoken's ranks."""
    vocabulary = content["model"]["vocab"]
    by_token = {"".join(pair): None for pair in content["model"]["merges"]}
    merges = []
    for token in by_token:
        pairs = [(token[:k], token[k:]) for k in range(1, len(token))]
        merges += sorted([p for p in pairs if p[0] in vocabulary and p[1] in vocabulary], key=lambda p: [vocabulary[x] for x in p])
    content["model"]["merges"] = [list(pair) for pair in merges]
    return content


def with_ids(content: dict[str, Any], new: Callable[[int], int]) -> dict[str, Any]:
    """The same tokenizer under other ids."""
    for token in content["added_tokens"]:
        content["model"]["vocab"][token["content"]] = token["id"]
        token["id"] = new(token["id"])
    content["model"]["vocab"] = {token: new(id) for token, id in content["model"]["vocab"].items()}
    return content


def with_unreachable_token(content: dict[str, Any], token: str = "lazyfox") -> dict[str, Any]:
    """A token that no merges make; `ignore_merges` finds it all the same."""
    content["model"]["vocab"][token] = 5000
    return content


def with_plain_added_token(content: dict[str, Any]) -> dict[str, Any]:
    """An added token that is no special one, as Qwen's <tool_call>."""
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return json.loads(tokenizer.to_str())


def of_old(content: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that came later, as GPT-2's own file is, and with an unknown token, which bytes never need."""
    old = {key: content[key] for key in ("pre_tokenizer", "decoder", "added_tokens", "model")}
    old["model"] = {"vocab": content["model"]["vocab"], "merges": [" ".join(pair) for pair in content["model"]["merges"]]}
    old["model"]["unk_token"] = content["added_tokens"][0]["content"]
    del old["pre_tokenizer"]["use_regex"]
    return old


def translatable() -> dict[str, dict[str, Any]]:
    """By name, the tokenizers that tiktoken has an equal of."""
    llama3 = trained(split(LLAMA3), ignore_merges=True)
    return {
        "ours": json.loads(train_bpe(TEXTS, 700)),
        "gpt-2": trained(byte_level_only()),
        "whole texts": trained(byte_level_only(regex=False)),
        "llama-3": with_all_splits(json.loads(json.dumps(llama3))),
        "llama-3, an unreachable token": with_unreachable_token(json.loads(json.dumps(llama3))),
        "an unreachable token": with_unreachable_token(trained(byte_level_only())),
        "qwen-2": with_plain_added_token(trained(split(QWEN2), normalizer=normalizers.NFC())),
        "gpt-4": trained(split(GPT4, "removed", True)),
        "nanochat": trained(split(NANOCHAT)),
        "an old file": of_old(trained(byte_level_only())),
        "gpt-4o": trained(split(GPT4O)),
        "starcoder": trained(digits()),
        "ids with gaps": with_ids(trained(byte_level_only()), lambda id: 3 * id + 7),
        "ids in another order": with_ids(trained(split(LLAMA3), True), lambda id: (id * 389) % 1009),
    }


def untranslatable() -> dict[str, tuple[dict[str, Any], str]]:
    """By name, tokenizers that tiktoken has no equal of, and the words of the reason."""
    prefix, shared = trained(byte_level_only(prefix=True)), trained(byte_level_only(), True)
    two_steps = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), *(pre_tokenizers.Digits(), byte_level_only())])
    no_byte = trained(byte_level_only())
    no_byte["model"]["vocab"]["<missing>"] = no_byte["model"]["vocab"].pop("ÿ")
    return {
        "prefix space": (prefix, "it puts a space before the text"),
        "normaliser": (trained(byte_level_only(), normalizer=normalizers.BertNormalizer()), "BertNormalizer"),
        "other pattern": (trained(split(r"\p{L}+|\P{L}")), "its Split is none of"),
        "other steps": (trained(two_steps), "a sequence of other steps"),
        "a token looked up whole": (with_unreachable_token(shared, "~x"), "looked up whole"),
        "a missing byte": (no_byte, "lacks single bytes"),
        "word piece": (_trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer), "does not end with ByteLevel"),
        "unigram": (_trained(models.Unigram(), trainers.UnigramTrainer), "does not end with ByteLevel"),
        "sentencepiece": (_trained(models.BPE(byte_fallback=True), trainers.BpeTrainer), "does not end with ByteLevel"),
        "byte fallback": (_byte_fallback(), "its model has byte_fallback"),
    }


def _trained(model: models.Model, trainer: type) -> dict[str, Any]:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[UNK]"]
    settings = {"unk_token": "[UNK]"} if trainer is trainers.UnigramTrainer else {}
    tokenizer.train_from_iterator(TEXTS, trainer(vocab_size=400, special_tokens=special, show_progress=False, **settings))
    return json.loads(tokenizer.to_str())


def _byte_fallback() -> dict[str, Any]:
    content = trained(byte_level_only())
    content["model"]["byte_fallback"] = True
    return content


def loaded(content: dict[str, Any]) -> Tokenizer:
    """By the library alone, special tokens in text staying text."""
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    return tokenizer
