"""The data card: what is in a dataset, for people."""

from data_prep.clean import Report
from data_prep.recipe import Recipe
from llm.config import to_yaml
from llm.data.manifest import Manifest, write_whole

CARD = "CARD.md"


def write_card(manifest: Manifest, recipe: Recipe, reports: dict[str, Report]) -> None:
    """Write CARD.md beside the manifest: sources, licences, counts of every step, tokenizer, hashes."""
    tokenizer, given = manifest.tokenizer, recipe.tokenizer.path
    origin = f"given: `{given}`" if given else "byte-level BPE, trained on a sample of the training split"
    parts = [
        "# Data card\n",
        "## Sources\n",
        *_table(
            ["source", "kind", "licence", "weight"], [[n, s.kind, s.licence, f"{s.weight:g}"] for n, s in recipe.sources.items()]
        ),
        "## Reading and cleaning\n",
        *_cleaning(reports),
        "## Splits\n",
        *_splits(manifest),
        "## Tokenizer\n",
        f"- {origin}",
        f"- vocabulary {tokenizer.vocabulary}, stored as {manifest.dtype}, document token {tokenizer.document_token}",
        f"- sha256 `{tokenizer.sha256}`\n",
        "## Identity\n",
        f"- manifest `{manifest.hash}`",
        f"- recipe `{manifest.recipe}`\n",
        *(f"- `{shard.path}` sha256 `{shard.sha256}`" for shard in manifest.shards),
        "\n## Recipe\n",
        f"```yaml\n{_without_out(recipe)}```",
    ]
    write_whole(manifest.root / CARD, ("\n".join(parts) + "\n").encode(errors="backslashreplace"))


def _without_out(recipe: Recipe) -> str:
    return "".join(line for line in to_yaml(recipe).splitlines(keepends=True) if not line.startswith("out:"))


def _cleaning(reports: dict[str, Report]) -> list[str]:
    outcomes = ["read", "unreadable", "undecodable", "empty", "kept"]
    lines = _table(["source", *outcomes], [[name, *(report.counts[o] for o in outcomes)] for name, report in reports.items()])
    for name, report in reports.items():
        lines += [f"- {name}, {reason}: {', '.join(f'`{e}`' for e in examples)}" for reason, examples in report.examples.items()]
    return [*lines, ""]


def _splits(manifest: Manifest) -> list[str]:
    rows = []
    for split in sorted({shard.split for shard in manifest.shards}):
        for source in manifest.sources:
            shards = [shard for shard in manifest.shards if (shard.split, shard.source) == (split, source)]
            documents, tokens, text = (sum(getattr(shard, f) for shard in shards) for f in ("documents", "tokens", "text_bytes"))
            if documents:
                rows.append([split, source, len(shards), documents, tokens, text, f"{text / tokens:.3f}"])
    return _table(["split", "source", "shards", "documents", "tokens", "bytes of text", "bytes/token"], rows)


def _table(head: list[str], rows: list[list]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines), ""]
