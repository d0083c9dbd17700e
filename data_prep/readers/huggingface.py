"""Hugging Face datasets: a folder written by `save_to_disk`, or anything that `load_dataset` takes, streamed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.readers.record import DAMAGED, MALFORMED, ReadLog, Record, check_given
from data_prep.readers.walk import File, find_files
from llm.errors import DataError

SAVED = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class HuggingFace:
    """path: a folder, or a name on the hub. config, split, revision: as for `load_dataset`; without `split` all of them are read.

    text: the column that holds it. metadata: columns to keep. A record's place is `split#row`, `#row` in a saved dataset of no
    splits: it is stable while the dataset itself, on the hub its `revision`, is.
    """

    path: str = ""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    text: str = "text"
    metadata: list[str] = field(default_factory=list)
    kind: str = "huggingface"

    def check(self, where: str = "huggingface") -> None:
        """Raises ConfigError."""
        check_given(self, where, "path", "text")

    def inputs(self, log: ReadLog) -> Iterator[File]:
        """The files of a folder. What is on the hub is known by its name and `revision` alone."""
        return find_files(self.path, ["*"], log) if Path(self.path).exists() else iter(())

    def records(self, log: ReadLog) -> Iterator[Record]:
        """Raises DataError: no such dataset, split or column, or `datasets` is not installed."""
        for split, rows in sorted(self._splits().items()):
            columns = rows.column_names
            # a streamed dataset may not know its columns
            if columns is not None and self.text not in columns:
                raise DataError(f"text ({self.text}) is no column of {self.path}; name one of {', '.join(columns)}")
            if columns is not None:
                rows = rows.select_columns([self.text, *(name for name in self.metadata if name in columns and name != self.text)])
            yield from self._rows(split, iter(rows), log)

    def _rows(self, split: str, rows: Iterator[Any], log: ReadLog) -> Iterator[Record]:
        number = 0
        while True:
            place = f"{split}#{number}"
            # whatever the dataset's format, decoder and network raise
            try:
                row = next(rows, None)
            except Exception as error:
                return log.drop(f"{DAMAGED} ({type(error).__name__})", f"{place} and the rest")
            if row is None:
                return None
            number += 1
            if not isinstance(row, dict):
                log.drop(MALFORMED, place)
                continue
            yield from log.record(place, row.get(self.text), {name: row[name] for name in self.metadata if name in row})

    def _splits(self) -> dict[str, Any]:
        try:
            import datasets
        except ModuleNotFoundError:
            raise DataError("Hugging Face datasets need the package datasets; pip install 'braid-lm[data]'") from None
        try:
            if any((Path(self.path) / name).is_file() for name in SAVED):
                found: Any = datasets.load_from_disk(self.path)
            else:
                found = datasets.load_dataset(self.path, self.config, revision=self.revision, streaming=True)
        except Exception as error:
            law = f"cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            raise DataError(f"path ({self.path}) {law}; correct the name, or save the dataset again") from None
        splits = dict(found) if isinstance(found, dict) else {"": found}
        if self.split is None:
            return splits
        if self.split not in splits:
            raise DataError(f"split ({self.split}) is none of {self.path}; name one of {', '.join(sorted(splits)) or 'none'}")
        return {self.split: splits[self.split]}
