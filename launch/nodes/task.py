"""A task of the health check, on each rank: it looks at its node, meets the others, and tries its links."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from launch.nodes.limits import Limits
from launch.nodes.links import linger, measure, meet
from launch.nodes.probe import look
from launch.ranks import settle

# of the time that all have: until those who are there go on without the others, and what one link may take
MEETING, LINK = 0.4, 0.1


def probe(run: Path, limits: Limits) -> NoReturn:
    """What is wrong is in the report; the exit status is 0, as launchers end all tasks when one fails."""
    place = settle()
    report = look(place, run, limits)
    report.write(run)
    if place.world_size > 1:
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store, hosts, clock = meet(place, report.host, address, port, MEETING * limits.seconds)
        except RuntimeError as error:
            print(f"health: rank {place.rank} on {report.host} does not reach rank 0: {str(error).splitlines()[0]}", flush=True)
            leave()
        report = replace(report, clock=clock)
        measure(place, store, hosts, LINK * limits.seconds, lambda links: replace(report, links=links).write(run))
        linger(store, place.rank, hosts, LINK * limits.seconds)
    leave()


def leave() -> NoReturn:
    """At once: a link that hangs would keep the process."""
    sys.stdout.flush()
    os._exit(0)
