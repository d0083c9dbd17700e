"""What tests of preparing share."""

import random
from pathlib import Path

from data_prep.prepare import prepare
from data_prep.recipe import load_recipe
from llm.data import Manifest, documents, load_tokenizer

RECIPE = """
out: out
sources:
  prose: {read: {kind: text, root: text}, licence: CC0-1.0, weight: 2}
  code: {read: {kind: text, root: text, files: ["*.py"]}, licence: MIT}
dedup: {near: false}
tokenizer: {vocabulary: 300}
validation: 0.2
shard_tokens: 2000
workers: 1
"""
INJECTION = "text before <|endoftext|> and after <|endoftext|>"


def make_corpus(folder: Path) -> None:
    """A recipe, and text of every awkward sort."""
    (folder / "text" / "deep").mkdir(parents=True)
    for k in range(60):
        (folder / "text" / f"{k}.txt").write_text(f"The document number {k} says: {'word ' * k}\n")
        (folder / "text" / f"{k}.py").write_text(f"def f{k}(x):\n    return x + {k}\n")
    (folder / "text" / "deep" / "injected.txt").write_text(INJECTION)
    (folder / "text" / "lines.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree e\xcc\x81")
    (folder / "text" / "empty.txt").write_text(" \n\t")
    (folder / "text" / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "recipe.yaml").write_text(RECIPE)


def prepared(*words: str, replace: bool = False) -> Manifest:
    found = prepare(load_recipe(["recipe.yaml", *words]), replace)
    assert isinstance(found, Manifest)
    return found


def texts(manifest: Manifest) -> dict[str, list[str]]:
    """By split, the text of every document, decoded."""
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    return {
        split: [tokenizer.decode(d.tokens[1:].tolist(), skip_special_tokens=False) for d in documents(manifest, split)]
        for split in sorted({shard.split for shard in manifest.shards})
    }


def content(out: Path) -> dict[str, bytes]:
    """All files below `out` but for the figures of the run."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["report/run.json"]
    return found


WORDS = "the of and to that have with water river stone bridge people evening morning walked carried letter garden window".split()


def sentence(rng: random.Random, words: int) -> str:
    """Prose that filters let pass: sentences of random words, without a repetition."""
    made = [rng.choice(WORDS) + rng.choice(["", "", "", "s", "ing", "ed"]) + rng.choice("     .") for _ in range(words)]
    return " ".join(" ".join(made).split()) + ". "
