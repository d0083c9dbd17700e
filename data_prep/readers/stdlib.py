"""The sources of the Python standard library on this machine: text that every user has."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.readers.record import MAX_BYTES, ReadLog, Record
from data_prep.readers.text_files import decoded, read_file
from data_prep.readers.walk import File, find_files, rule
from llm.errors import DataError

FOREIGN = rule("another package", ["site-packages/", "dist-packages/", "__pycache__/"])
TESTS = rule("test", ["test/", "tests/", "idle_test/"])


@dataclass(frozen=True)
class PythonStdlib:
    """tests: take its test suites too."""

    tests: bool = False
    kind: str = "python-stdlib"

    def check(self, where: str = "python-stdlib") -> None:
        """There is nothing to set wrong."""

    def inputs(self, log: ReadLog) -> Iterator[File]:
        """Raises DataError when this Python came without sources."""
        root = sysconfig.get_path("stdlib")
        try:
            yield from find_files(root, ["*.py"], log, [FOREIGN] if self.tests else [FOREIGN, TESTS])
        except DataError:
            raise DataError(f"the standard library in {root} has no .py files; use a Python that ships its sources") from None

    def records(self, log: ReadLog) -> Iterator[Record]:
        """Raises DataError when this Python came without sources."""
        for file in self.inputs(log):
            content = read_file(file, MAX_BYTES, log)
            if content is not None:
                yield from decoded(file, content, log)
