"""Foreign documents of ids -> a dataset of ours."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep.convert.ids import ConvertConfig, Counts, Cutter
from data_prep.place import check_new
from data_prep.token_bytes import text_sizes
from llm.data.manifest import Manifest, Source
from llm.data.write import DatasetWriter, tokenizer_info
from llm.whole_file import write_bytes


class Reader(Protocol):
    """Documents of foreign files."""

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(place, ids)."""


def convert(reader: Reader, tokenizer_json: bytes, out: Path, config: ConvertConfig) -> tuple[Manifest, Counts]:
    """Write the documents as a dataset.

    Raises:
        DataError: ids that are not the tokenizer's, a mark inside of a document, damaged files, a folder that is not empty.
        ConfigError: settings that cannot work.
    """
    cut = Cutter(tokenizer_info(tokenizer_json), config)
    check_new(out)
    size_of = text_sizes(tokenizer_json)
    writer = DatasetWriter(out, tokenizer_json, {config.source: Source(config.weight, config.licence)}, config.shard_tokens)
    for place, ids in reader.documents():
        for _, document, split in cut(place, ids):
            writer.add(config.source, split, document, size_of(document))
    cut.check_any()
    manifest = writer.close()
    finish(manifest, config, cut.counts, "Converted from token files of another project.")
    return manifest, cut.counts


def finish(manifest: Manifest, config: ConvertConfig, counts: Counts, origin: str) -> None:
    """Write the data card, and last the manifest."""
    totals = [(split, manifest.totals(split)) for split in sorted({shard.split for shard in manifest.shards})]
    lines = ["# Data card", "", origin, ""]
    lines += [f"- {name}: {value}" for name, value in asdict(config).items()]
    lines += [f"- documents {name}: {count:,}" for name, count in sorted(counts.items())]
    lines += [f"- {split}: {t.documents:,} documents, {t.tokens:,} tokens, {t.text_bytes:,} bytes of text" for split, t in totals]
    lines += [f"- tokenizer sha256 `{manifest.tokenizer.sha256}`", f"- manifest `{manifest.hash}`"]
    write_bytes(manifest.root / "CARD.md", "\n".join([*lines, ""]).encode())
    manifest.write()


def summary(manifest: Manifest, counts: Counts) -> str:
    """What was made, for people."""
    shards = f"{manifest.root}: {len(manifest.shards)} shards, manifest {manifest.hash[:12]}"
    return "\n".join([*(f"documents {name}: {count:,}" for name, count in sorted(counts.items())), shards])
