"""The files below a folder, in the order of their paths, one folder's names in memory at a time."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from data_prep.readers.record import UNREADABLE, ReadLog, printable
from llm.errors import DataError

LINK = "link to a folder"
NO_FILE = "pipe or device"
IGNORED = "ignored"


class File(NamedTuple):
    """name: below the root, with `/`, as ids show it."""

    name: str
    path: Path


class Rule(NamedTuple):
    """Files and folders not to read, by patterns as in a .gitignore, and the reason that is counted for them."""

    reason: str
    spec: GitIgnoreSpec


def rule(reason: str, patterns: Sequence[str]) -> Rule:
    return Rule(reason, GitIgnoreSpec.from_lines(patterns))


def find_files(
    root: str, files: Sequence[str], log: ReadLog, rules: Sequence[Rule] = (), gitignore: bool = False
) -> Iterator[File]:
    """Files below `root` that match one of `files` and none of `rules`.

    Links to files are followed; links to folders, folders that cannot be listed, pipes, devices and what `rules` leave out are
    counted. A folder that is left out counts once, whatever it holds. A file that `files` do not ask for is not counted.

    Args:
        root: a folder, or one file, which is taken as it is.
        files: patterns as in a .gitignore: `*.txt` at any depth, `/*.txt` in the root alone, `a/**/b.txt`.
        gitignore: heed the .gitignore files in the tree as well.

    Raises:
        DataError: there is no root, it cannot be listed, or nothing matches.
    """
    top = Path(root)
    if top.is_file():
        yield File(printable(top.name), top)
        return
    if not top.is_dir():
        raise DataError(f"root ({root}) does not exist in {Path.cwd()}; correct the path")
    if not os.access(top, os.R_OK | os.X_OK):
        raise DataError(f"root ({root}) cannot be listed; check your rights to read it")
    wanted = GitIgnoreSpec.from_lines(files)
    found = False
    for name, path in _walk(top, wanted, log, rules, gitignore):
        found = True
        yield File(name, path)
    if not found:
        raise DataError(f"files ({', '.join(files)}) match nothing in {root}; correct the patterns")


class _Folder(NamedTuple):
    """entries: those still to come. ignores: (prefix of paths, patterns) of the .gitignore files that hold here."""

    entries: Iterator[os.DirEntry]
    ignores: tuple[tuple[str, GitIgnoreSpec], ...]


def _walk(top: Path, wanted: GitIgnoreSpec, log: ReadLog, rules: Sequence[Rule], gitignore: bool) -> Iterator[tuple[str, Path]]:
    root = os.fspath(top)
    stack = [_open(root, "", (), log, gitignore)]
    while stack:
        entry = next(stack[-1].entries, None)
        if entry is None:
            stack.pop()
            continue
        name = printable(os.path.relpath(entry.path, root))
        folder, ignores = _is_folder(entry), stack[-1].ignores
        if not folder and not wanted.match_file(name):
            continue
        reason = _left_out(name + "/" * folder, rules, ignores)
        if reason is None and not folder and _never_ends(entry.path):
            reason = NO_FILE
        if reason is None and folder and entry.is_symlink():
            reason = LINK
        if reason:
            log.drop(reason, name + "/" * folder)
        elif folder:
            stack.append(_open(entry.path, name + "/", ignores, log, gitignore))
        else:
            yield name, Path(entry.path)


def _open(path: str, prefix: str, ignores: tuple, log: ReadLog, gitignore: bool) -> _Folder:
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError:
        log.drop(f"{UNREADABLE} folder", prefix or "./")
        found = []
    if gitignore and any(entry.name == ".gitignore" and entry.is_file() for entry in found):
        with log.opening(f"{prefix}.gitignore"):
            lines = Path(path, ".gitignore").read_text(errors="replace").splitlines()
            ignores = (*ignores, (prefix, _gitignore(lines, prefix, log)))
    return _Folder(iter(found), ignores)


def _is_folder(entry: os.DirEntry) -> bool:
    # a link that leads to itself raises; opening it as a file counts it
    with suppress(OSError):
        return entry.is_dir()
    return False


def _never_ends(path: str) -> bool:
    """Whether opening it may wait for ever, or reading it never end."""
    with suppress(OSError):
        mode = os.stat(path).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    return False


def _gitignore(lines: list[str], prefix: str, log: ReadLog) -> GitIgnoreSpec:
    good = []
    for k, line in enumerate(lines, start=1):
        try:
            GitIgnoreSpec.from_lines([line])
            good.append(line)
        except ValueError:
            log.drop("malformed pattern", f"{prefix}.gitignore#{k}")
    return GitIgnoreSpec.from_lines(good)


def _left_out(name: str, rules: Sequence[Rule], ignores: tuple[tuple[str, GitIgnoreSpec], ...]) -> str | None:
    for reason, spec in rules:
        if spec.match_file(name):
            return reason
    # the .gitignore nearest to the file that speaks of it decides, as in git
    for prefix, spec in reversed(ignores):
        for pattern in reversed(spec.patterns):
            if _speaks_of(pattern, name.removeprefix(prefix)):
                return IGNORED if pattern.include else None
    return None


def _speaks_of(pattern: GitIgnoreSpecPattern, name: str) -> bool:
    """Of the file or folder itself: in pathspec a pattern for a folder also matches what is in it, in git the folder alone."""
    found = pattern.match_file(name) if pattern.include is not None else None
    if found is None:
        return False
    if found.match.groupdict().get("ps_d"):
        return found.match.end("ps_d") == len(name)
    # `a/**` is what is in a
    return not name.endswith("/")
