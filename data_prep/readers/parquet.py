"""Parquet files, by row groups and within them by batches of rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_prep.readers.record import DAMAGED, NO_TEXT, NOT_STRING, UNDECODABLE, ReadLog, Record, check_given, check_positive
from data_prep.readers.walk import File, find_files
from llm.errors import DataError


@dataclass(frozen=True)
class Parquet:
    """root: a folder or a file. files: patterns, as in a .gitignore. text: the column that holds it. metadata: columns to keep.

    rows: in memory at once. A record's position is its row in the file, from 0.
    """

    root: str = ""
    files: list[str] = field(default_factory=lambda: ["*.parquet"])
    text: str = "text"
    metadata: list[str] = field(default_factory=list)
    rows: int = 256
    kind: str = "parquet"

    def check(self, where: str = "parquet") -> None:
        """Raises ConfigError."""
        check_given(self, where, "root", "files", "text")
        check_positive(self, where, "rows")

    def inputs(self, log: ReadLog) -> Iterator[File]:
        """Raises DataError when there is no such file at all."""
        return find_files(self.root, self.files, log)

    def records(self, log: ReadLog) -> Iterator[Record]:
        """Raises DataError when there is no such file at all, or pyarrow is not installed."""
        try:
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise DataError("files ending in .parquet need the package pyarrow; pip install 'braid-lm[data]'") from None
        for file in self.inputs(log):
            with log.opening(file.name), file.path.open("rb") as stream:
                try:
                    content = pq.ParquetFile(stream, pre_buffer=False)
                    schema = content.schema_arrow
                # a damaged footer raises ArrowInvalid, OSError and others, by where the damage is
                except Exception:
                    log.drop(DAMAGED, file.name)
                    continue
                yield from self._file(file, content, schema, log)

    def _file(self, file: File, content: Any, schema: Any, log: ReadLog) -> Iterator[Record]:
        rows = content.metadata.num_rows
        if self.text not in schema.names:
            return log.drop(NO_TEXT, f"{file.name} (columns: {', '.join(schema.names)})", rows)
        if not _is_string(schema.field(self.text).type):
            return log.drop(NOT_STRING, f"{file.name} ({schema.field(self.text).type})", rows)
        columns = [self.text, *(name for name in self.metadata if name in schema.names and name != self.text)]
        end = 0
        for group in range(content.num_row_groups):
            row, end = end, end + content.metadata.row_group(group).num_rows
            batches = content.iter_batches(self.rows, [group], columns, use_threads=False)
            while row < end:
                # one row group's damage leaves the others readable
                try:
                    batch = next(batches)
                except Exception:
                    log.drop(DAMAGED, f"{file.name}#{row} to {end - 1}, row group {group}", end - row)
                    break
                yield from _rows(file, row, batch, columns, log)
                row += len(batch)


def _rows(file: File, start: int, batch: Any, columns: list[str], log: ReadLog) -> Iterator[Record]:
    for k in range(len(batch)):
        place = f"{file.name}#{start + k}"
        # bytes that are no UTF-8 show only here
        try:
            text, *metadata = (batch.column(name)[k].as_py() for name in columns)
        except UnicodeDecodeError:
            log.drop(UNDECODABLE, place)
            continue
        yield from log.record(place, text, dict(zip(columns[1:], metadata, strict=True)))


def _is_string(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
