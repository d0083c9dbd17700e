"""Errors that a user can cause. Each message is one sentence: *setting (value) — the law — the way out*."""

import difflib
from collections.abc import Iterable


class BraidError(Exception):
    """Anything a user can cause; entry scripts print its message without a traceback, and exit with `status`."""

    status = 2


class ConfigError(BraidError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(BraidError):
    """Shards, manifests or text that are damaged, missing or do not belong together."""


class CheckpointError(BraidError):
    """A run folder or checkpoint that cannot be written, read or continued."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The hint that ends a message about an unknown `word`: its nearest neighbour, and all that is known."""
    known = sorted(options)
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known)}"
