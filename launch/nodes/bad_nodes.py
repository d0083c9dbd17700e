"""`RUN/bad-nodes.txt`: nodes that the run is not started on again. A line each: host, time, reason."""

import time
from collections.abc import Iterable
from pathlib import Path

NAME = "bad-nodes.txt"


def bad_nodes(run: Path) -> dict[str, str]:
    """Host -> the rest of its line. Lines that begin with # are none."""
    path = run / NAME
    lines = path.read_text().splitlines() if path.is_file() else []
    return {host: rest.strip() for host, _, rest in (line.partition(" ") for line in lines) if host and not host.startswith("#")}


def add_bad_nodes(run: Path, found: Iterable[tuple[str, str]]) -> list[str]:
    """Append (host, reason), each host once; the hosts that are new."""
    known = bad_nodes(run)
    new = {host: reason for host, reason in reversed(list(found)) if host not in known}
    with (run / NAME).open("a") as file:
        for host, reason in new.items():
            print(host, time.strftime("%Y-%m-%dT%H:%M:%S%z"), reason, file=file)
    return list(new)
