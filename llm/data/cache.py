"""The local copies of a remote dataset's shards: a folder per dataset, named by the manifest's hash, under `data.cache.folder`.

- A shard has its own name only when it is whole, checked and on disk; until then it is `.NAME.part`, locked by who downloads it.
  Others that want it wait for that lock, so the ranks of a node download it once. A killed process loses the lock, and the next
  one starts that part anew or clears it away.
- `.lock` guards which files there are: making room, reserving a part's full size, giving a shard its name.
- The least recently opened shards give way. Readers that hold one open go on reading it; its space is free when they close it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llm.data.remote import CacheConfig, Missing, download, read_whole
from llm.errors import DataError

# folders named by a hash: whatever else lies in the cache's folder is left alone
OURS = "[0-9a-f]" * 32


@dataclass(frozen=True)
class RemoteFolder:
    """A dataset elsewhere. url: of the folder that holds its manifest."""

    url: str
    config: CacheConfig

    def open(self, root: Path, name: str, size: int, sha256: str) -> int:
        """A descriptor of `root / name`, downloaded if it is not there. Raises DataError."""
        path = root / name
        part = path.with_name(f".{path.name}.part")
        try:
            while (found := _opened(path)) is None:
                part.parent.mkdir(parents=True, exist_ok=True)
                with _claimed(part) as mine:
                    # it may have come between the look and the claim
                    if mine is not None and not path.exists():
                        self._download(name, part, mine, size, sha256)
                        self._settle(part, path)
                        # and not by its name: another process may have needed the room already
                        return os.dup(mine)
            return found
        except OSError as error:
            raise self.unusable(name, size, error) from None

    def read_beside(self, name: str) -> bytes | None:
        """A small file beside the manifest; None where there is none. Raises DataError."""
        try:
            return read_whole(f"{self.url}/{name}", self.config, lambda content: None)
        except Missing:
            return None

    def unusable(self, name: str, size: int, error: OSError) -> DataError:
        """What to say when the disk of the copies is full, or cannot be written."""
        return DataError(
            f"data.cache.folder ({self.config.root}) cannot take {self.url}/{name} of {size:,} bytes ({error.strerror}); "
            f"free space there, lower data.cache.bytes ({self.config.bytes:,}), or choose another folder"
        )

    def _download(self, name: str, part: Path, descriptor: int, size: int, sha256: str) -> None:
        with _locked(self.config.root / ".lock"):
            self._make_room(size, part)
            # its full size from the start, so that others count it
            os.ftruncate(descriptor, size)

        def write(data: bytes, offset: int) -> None:
            view = memoryview(data)
            try:
                while view:
                    written = os.pwrite(descriptor, view, offset)
                    view, offset = view[written:], offset + written
            except OSError as error:
                # told apart from a failing network: no other try mends a full disk
                raise self.unusable(name, size, error) from None

        download(f"{self.url}/{name}", write, size, sha256, self.config)
        os.fsync(descriptor)

    def _settle(self, part: Path, path: Path) -> None:
        """Give a whole shard its name. Downloads side by side may have exceeded the bound, so room is made again."""
        with _locked(self.config.root / ".lock"):
            part.rename(path)
            self._make_room(0, path)

    def _make_room(self, needed: int, keep: Path) -> None:
        """Remove abandoned parts, and old shards until the rest and `needed` are within the bound; not `keep`, shard or part."""
        total, shards = needed, []
        for path in self.config.root.glob(f"{OURS}/**/*.tar*"):
            with suppress(FileNotFoundError):
                state = path.stat()
                if path.suffix == ".tar":
                    shards.append((state.st_mtime_ns, state.st_size, path))
                elif path == keep or _abandoned(path):
                    continue
                total += state.st_size
        for _, size, path in sorted(shards):
            if total > self.config.bytes and path != keep:
                path.unlink(missing_ok=True)
                total -= size


def _opened(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    # when it was last wanted, as times of access are often switched off. Another user's file cannot be marked
    with suppress(OSError):
        os.utime(descriptor)
    return descriptor


@contextmanager
def _claimed(part: Path) -> Iterator[int | None]:
    """A descriptor of `part`, locked and empty; None when it was finished or given up by another while we waited for the lock."""
    with _locked(part) as descriptor:
        if not _is(descriptor, part):
            yield None
            return
        try:
            os.ftruncate(descriptor, 0)
            yield descriptor
        finally:
            # only our own: by now it may be a shard, and this name another's
            if _is(descriptor, part):
                part.unlink()


def _abandoned(part: Path) -> bool:
    """Whether `part` was nobody's; it is gone then."""
    descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # by now this name may be another's
        if not _is(descriptor, part):
            return False
        part.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        # explicitly, since duplicates and forked children hold the lock too
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
