"""The data card: what is in a dataset, for people."""

from collections.abc import Iterator
from itertools import groupby

from data_prep.markup import markdown
from data_prep.outcome import Outcome
from data_prep.report import REPORT
from llm.data.manifest import Manifest
from llm.whole_file import write_bytes

CARD = "CARD.md"


def write_card(manifest: Manifest, outcome: Outcome) -> None:
    """Write CARD.md beside the manifest: sources, licences, the ledger of every step, splits, tokenizer, hashes, recipe."""
    write_bytes(manifest.root / CARD, "".join(_card(manifest, outcome)).encode(errors="backslashreplace"))


def untrained(manifest: Manifest) -> list[str]:
    """The sources that were to be trained on, and have nothing to train on."""
    trained = {shard.source for shard in manifest.shards if shard.split == "train"}
    return [name for name, source in manifest.sources.items() if source.weight > 0 and name not in trained]


def _card(manifest: Manifest, outcome: Outcome) -> Iterator[str]:
    recipe = outcome.recipe
    yield "# Data card\n\n## Sources\n\n"
    head = ["source", "kind", "licence", "weight", "filters"]
    sources = recipe.sources.items()
    yield markdown(head, [[n, s.read.kind, s.licence, f"{s.weight:g}", s.filters.profile] for n, s in sources])
    for name in untrained(manifest):
        yield f"\n**{name} has no document to train on**, so it is left out of the mixture.\n"
    yield "\n## Documents and bytes, step by step\n\n"
    yield outcome.ledger()
    yield f"\nSamples of what was dropped are in [{REPORT}/drops.md]({REPORT}/drops.md), all counts in"
    yield f" [{REPORT}/report.json]({REPORT}/report.json), figures of the run in [{REPORT}/run.json]({REPORT}/run.json).\n"
    yield from _examples(outcome)
    yield "\n## Splits\n\n"
    yield from _splits(manifest)
    yield f"\n![tokens of a document]({REPORT}/lengths.png)\n"
    yield from _tokenizer(manifest, outcome)
    yield f"\n## Identity\n\n- manifest `{manifest.hash}`\n- recipe `{manifest.recipe}`\n\n"
    yield markdown(["shard", "sha256"], [[shard.path, f"`{shard.sha256}`"] for shard in manifest.shards])
    yield f"\n## Recipe\n\n```yaml\n{recipe.to_yaml()}```\n"


def _examples(outcome: Outcome) -> Iterator[str]:
    """What could not be read is named here already."""
    lines = [
        f"- {name}, {reason}: {', '.join(f'`{place}`' for place in places)}\n"
        for name, reading in outcome.reading.items()
        for reason, places in reading.examples.items()
    ]
    if lines:
        yield "\nNot read, by reason, the first of each:\n\n" + "".join(lines)


def _splits(manifest: Manifest) -> Iterator[str]:
    rows = []
    for (split, source), group in groupby(sorted(manifest.shards, key=_place), key=_place):
        shards = list(group)
        documents, tokens, text = (sum(getattr(shard, name) for shard in shards) for name in ("documents", "tokens", "text_bytes"))
        rows.append([split, source, len(shards), documents, tokens, text, f"{text / tokens:.3f}"])
    yield markdown(["split", "source", "shards", "documents", "tokens", "bytes of text", "bytes/token"], rows)


def _place(shard) -> tuple[str, str]:
    return shard.split, shard.source


def _tokenizer(manifest: Manifest, outcome: Outcome) -> Iterator[str]:
    tokenizer, given = manifest.tokenizer, outcome.recipe.tokenizer.path
    origin = f"given: `{given}`" if given else "byte-level BPE, trained on a sample of the training split"
    text, tokens = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("text_bytes", "tokens"))
    yield f"\n## Tokenizer\n\n- {origin}\n"
    yield f"- vocabulary {tokenizer.vocabulary}, stored as {manifest.dtype}, document token {tokenizer.document_token}\n"
    yield f"- {text / tokens:.3f} bytes of text a token, document tokens among them\n- sha256 `{tokenizer.sha256}`\n"
