"""WebDataset tars of texts, encoded once into shards; as they are, for `prepare` is what cleans."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from data_prep.clean import Report
from data_prep.convert.convert import finish
from data_prep.convert.ids import KEPT, ConvertConfig, Counts
from data_prep.encoder import Encoder
from data_prep.place import check_new
from data_prep.readers import ReadLog, Tars
from llm.data.manifest import Manifest, Source
from llm.data.write import DatasetWriter
from llm.errors import DataError

# texts encoded at once
BATCH = 256


def encode_texts(
    tars: Sequence[Path], tokenizer_json: bytes, out: Path, config: ConvertConfig, extension: str = "txt", text: str = "text"
) -> tuple[Manifest, Counts]:
    """A dataset of shards in `out` of the samples' texts.

    Args:
        text: the field of the object, where `extension` is json.

    Raises:
        DataError: no text at all, a folder that is not empty. ConfigError: settings that cannot work.
    """
    config.check()
    # not beside the tars: shards that an interrupted writer left are removed by their names
    check_new(out)
    encoder, report = Encoder(tokenizer_json), Report()
    writer = DatasetWriter(out, tokenizer_json, {config.source: Source(config.weight, config.licence)}, config.shard_tokens)
    texts = _texts(tars, extension, text, ReadLog(config.source, report))
    while batch := list(islice(texts, BATCH)):
        for content, ids in zip(batch, encoder.encode(batch), strict=True):
            encoded = content.encode()
            report.counts[KEPT] += 1
            writer.add(config.source, config.split(encoded), ids, len(encoded))
    if not report.counts[KEPT]:
        reasons = ", ".join(f"{name}: {count}" for name, count in report.counts.items()) or "no sample"
        raise DataError(f"tars hold no text in .{extension} ({reasons}); name the right --extension and --field")
    manifest = writer.close()
    finish(manifest, config, report.counts, f"Texts of .{extension} in WebDataset tars of others, encoded by {encoder.name}.")
    return manifest, report.counts


def _texts(tars: Sequence[Path], extension: str, text: str, log: ReadLog) -> Iterator[str]:
    for tar in tars:
        for record in Tars(str(tar), [tar.name], extension, text).records(log):
            if record.text.strip():
                yield record.text
            else:
                log.report.drop("empty", record.id)
