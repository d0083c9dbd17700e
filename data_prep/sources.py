"""Where text comes from: a literal table of kinds, each a config that lists its files in a stable order."""

import glob
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from llm.errors import DataError

# other people's packages, and folders of tests
FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class FilesSource:
    """UTF-8 text files, one document each. files: globs (`**` for any depth), from the working directory."""

    kind: str = "files"
    files: list[str] = field(default_factory=list)
    weight: float = 1.0
    licence: str = "unknown"

    def documents(self) -> list[tuple[str, Path]]:
        """(document id, file), sorted by id. Raises DataError when a glob matches nothing."""
        if not self.files:
            raise DataError("files (none) must name at least one file; write files: ['folder/**/*.txt']")
        found = set()
        for pattern in self.files:
            matches = [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
            if not matches:
                raise DataError(f"files ({pattern}) match nothing in {Path.cwd()}; correct the glob")
            found.update(matches)
        return [(name, Path(name)) for name in sorted(found)]


@dataclass(frozen=True)
class StdlibSource:
    """The sources of the Python standard library on this machine. tests: take its test suites too."""

    kind: str = "python-stdlib"
    tests: bool = False
    weight: float = 1.0
    licence: str = "PSF-2.0"

    def documents(self) -> list[tuple[str, Path]]:
        """(document id, file), sorted by id. Raises DataError when this Python came without sources."""
        root = Path(sysconfig.get_path("stdlib"))
        skipped = FOREIGN if self.tests else FOREIGN | TESTS
        paths = {path.relative_to(root): path for path in root.rglob("*.py") if path.is_file()}
        found = [(name.as_posix(), path) for name, path in sorted(paths.items()) if not skipped & set(name.parts[:-1])]
        if not found:
            raise DataError(f"the standard library in {root} has no .py files; use a Python that ships its sources")
        return found


SOURCES: dict[str, type] = {"files": FilesSource, "python-stdlib": StdlibSource}
