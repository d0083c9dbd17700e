"""What entry scripts do with the words of a command line: help without any, and a user's error in one sentence."""

import os
import sys
from collections.abc import Callable, Sequence

from llm.errors import BraidError


def enter(run: Callable[[Sequence[str]], int], words: Sequence[str], help_text: str | None) -> int:
    """The exit status: that of `run`, or the error's, which one rank tells; 2 without words."""
    if not words or words[0] in ("-h", "--help"):
        print(help_text)
        return 0 if words else 2
    try:
        return run(words)
    except BraidError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return error.status
