"""Reading files that live elsewhere (s3, gs, http, hf, ... through fsspec), with retries.

What may pass is tried again after a growing, jittered wait: dropped connections, answers that do not come in time, 5xx, short or
wrong bytes. What will not pass fails at once: a missing file (404), a refusal (403), a missing package. A file is read in ranges of
8 MiB, so a broken download goes on where it broke. A server that knows no ranges sends the whole file, which is taken as such.

Settings of a protocol (endpoint, anonymous access, profile) are fsspec's own: `FSSPEC_S3_ENDPOINT_URL`, `FSSPEC_S3_ANON=true`,
`AWS_PROFILE`, `HF_TOKEN`, or `~/.config/fsspec/*.json`.
"""

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from llm.errors import ConfigError, DataError

RANGE = 1 << 23
LONGEST_WAIT = 60.0
TRIES_IF_WRONG = 3
# seconds between two lines about retries: many threads may meet the same outage
QUIET = 5.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class CacheConfig:
    """How a dataset elsewhere is read and kept.

    folder: of the copies, $BRAID_CACHE or ~/.cache/braid by default; shared by ranks of a node, runs and datasets. A local disk is
    best. bytes: bound on the shards of all datasets in it, apart from downloads side by side. retries: after the first failure of
    a range. timeout: seconds that a range of 8 MiB may take, or a shard where the server knows no ranges. backoff: seconds before
    the first retry; they double.
    """

    folder: str = ""
    bytes: int = 200 * 10**9
    retries: int = 8
    timeout: float = 60.0
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if self.bytes < 1 or self.retries < 0 or self.timeout <= 0 or self.backoff < 0:
            raise ConfigError(
                f"data.cache.bytes ({self.bytes}) and timeout ({self.timeout}) must be positive, retries ({self.retries}) and "
                f"backoff ({self.backoff}) not negative; leave them out for the defaults"
            )

    @property
    def root(self) -> Path:
        return Path(self.folder or os.environ.get("BRAID_CACHE") or "~/.cache/braid").expanduser()


class Unreachable(DataError):
    """A server that gave no proper answer in all tries."""


class Missing(DataError):
    """No such file."""


class Wrong(Exception):
    """A file arrived, and is not the one asked for. Mostly it lies there like this, so few tries are enough."""


def is_remote(path: str | Path) -> bool:
    return isinstance(path, str) and "://" in path


def read_whole(url: str, config: CacheConfig, check: Callable[[bytes], None]) -> bytes:
    """A small file. check: raises Wrong for bytes to be asked for again. Raises DataError; Unreachable when no bytes came."""

    def attempt() -> bytes:
        content = _ask(url, config)
        check(content)
        return content

    return _retried(attempt, url, config)


def download(url: str, write: Callable[[bytes, int], None], size: int, sha256: str, config: CacheConfig) -> None:
    """`write(bytes, offset)` a file of `size` bytes, range by range. Raises DataError unless it arrives with its sha256."""

    def attempt() -> None:
        digest, at = hashlib.sha256(), 0
        while at < size:
            data = _retried(partial(_range, url, at, size, config), url, config)
            if len(data) == size:
                # a server without ranges, perhaps one of several behind the same name
                digest, at = hashlib.sha256(), 0
            write(data, at)
            digest.update(data)
            at += len(data)
        if digest.hexdigest() != sha256:
            raise Wrong(f"sha256 {digest.hexdigest()[:12]}, the manifest says {sha256[:12]}")

    _retried(attempt, url, config)


def _range(url: str, start: int, size: int, config: CacheConfig) -> bytes:
    """From `start` RANGE bytes or to the end; or the whole file."""
    stop = min(start + RANGE, size)
    data = _ask(url, config, start=start, end=stop)
    if len(data) not in (stop - start, size):
        raise OSError(f"{len(data)} bytes of the {stop - start} from byte {start}")
    return data


def _ask(url: str, config: CacheConfig, **limits: int) -> bytes:
    # fsspec keeps an instance by process and thread, so this is safe after a fork and holds connections open
    files, path = fsspec.url_to_fs(url)
    if not limits:
        files.invalidate_cache()
    patience = {"timeout": config.timeout} if files.async_impl else {}
    return files.cat_file(path, **limits, **patience)


def _retried(attempt: Callable[[], Result], url: str, config: CacheConfig) -> Result:
    for k in range(config.retries + 1):
        try:
            return attempt()
        except DataError:
            raise
        except Exception as error:
            _refuse_lasting(error, url)
            failure = error
        if k >= (min(config.retries, TRIES_IF_WRONG - 1) if isinstance(failure, Wrong) else config.retries):
            break
        wait = min(config.backoff * 2**k, LONGEST_WAIT) * random.uniform(0.5, 1)
        _say(f"{url}: {_reason(failure, config)}; next of {config.retries} retries in {wait:.1f} s")
        time.sleep(wait)
    told = f"{k + 1} tries, the last: {_reason(failure, config)}"
    if isinstance(failure, Wrong):
        raise DataError(f"{url} arrives wrong ({told}); upload the dataset again, whole")
    raise Unreachable(
        f"{url} cannot be read ({told}); check network and server, or raise data.cache.retries ({config.retries}) or "
        f"timeout ({config.timeout:g} s)"
    )


def _refuse_lasting(error: Exception, url: str) -> None:
    """Raise DataError for what another try cannot mend."""
    status = _status(error)
    if isinstance(error, ImportError):
        cause = error if error.name else error.__cause__
        package = getattr(cause, "name", None) or str(error)
        raise DataError(f"{url} needs the package {package}; pip install 'braid-lm[remote]'") from None
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise Missing(f"{url} does not exist; correct the address, or upload the dataset whole") from None
    if isinstance(error, PermissionError) or status in (401, 403):
        raise DataError(f"{url} is refused ({error}); check the credentials and their rights to read") from None
    # 408, 425, 429: too slow, too early, too many
    if isinstance(error, ValueError) or (400 <= status < 500 and status not in (408, 425, 429)):
        raise DataError(f"{url} cannot be read ({error}); correct the address, or upload the dataset whole") from None


def _status(error: Exception) -> int:
    """The HTTP status that an error of aiohttp, gcsfs or huggingface_hub tells, else 0."""
    for holder, name in ((error, "status"), (error, "code"), (getattr(error, "response", None), "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return 0


def _reason(error: Exception, config: CacheConfig) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {config.timeout:g} s"
    return str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"


_said = [-QUIET]


def _say(line: str) -> None:
    """One line on stderr, unless there was one just now."""
    if time.monotonic() - _said[0] >= QUIET:
        _said[0] = time.monotonic()
        print(line, file=sys.stderr, flush=True)
