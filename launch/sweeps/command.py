"""The words of `braid-sweep`: which verb, which sweep, on a cluster or here."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.jobs.command import SITE
from launch.jobs.site import WORD, Site, load_site
from launch.sweeps.array import active, array_script, cancel, submit_array
from launch.sweeps.config import SweepConfig
from launch.sweeps.folder import FINISHED, RUNNING, Sweep
from launch.sweeps.here import run_here
from llm.config import is_override, load
from llm.errors import ConfigError
from llm.train.start import quiet


def run(words: Sequence[str]) -> int:
    """The exit status. Raises ConfigError, DataError, CheckpointError."""
    parser = argparse.ArgumentParser(prog="braid-sweep", add_help=False)
    parser.add_argument("--site", default=os.environ.get(SITE))
    parser.add_argument("--dry-run", action="store_true")
    given, rest = parser.parse_known_args(words)
    unknown = next((word for word in rest if word.startswith("-")), None)
    if unknown is not None:
        raise ConfigError(f"{unknown} is no option of braid-sweep; `braid-sweep --help` names them")
    console = Console(highlight=False, soft_wrap=True)
    if rest[:1] in (["status"], ["resume"], ["cancel"]):
        verb, sweep = rest[0], Sweep.read(_folder(rest))
        if verb == "cancel":
            cancel(sweep)
        if verb != "resume":
            return _tell(sweep, console)
    else:
        sweep = Sweep.of(load(SweepConfig, [word for word in rest if not word.startswith(WORD)], {}))
    return _start(sweep, _site(given.site, sweep, rest), given.dry_run, console)


def _start(sweep: Sweep, site: Site | None, dry_run: bool, console: Console) -> int:
    """Run all that is neither done nor under way."""
    busy = active(sweep) if site is not None else set()
    points = [point for point in sweep.points if sweep.state(point, point.name in busy).word not in (FINISHED, RUNNING)]
    if dry_run:
        for point in points:
            print(f"# {point.name}: {' '.join(sweep.words(point))}")
        if site is not None:
            print(array_script(sweep, points, site), end="")
        return 0
    if not points:
        console.print(f"{sweep.path}: nothing is missing")
    elif site is None:
        sweep.write()
        run_here(sweep, points, console)
    else:
        array = submit_array(sweep, points, site)
        console.print(f"{array} queued: {len(points)} run(s); `braid-sweep status {sweep.path}` says how they are")
        return 0
    return _tell(sweep, console)


def _tell(sweep: Sweep, console: Console) -> int:
    """Print and write the table."""
    quiet()
    # DeepSpeed comes with it
    from launch.sweeps.table import rows_of, shown, write_tables

    on_cluster = (sweep.path / "site.yaml").is_file()
    rows, finished = rows_of(sweep, active(sweep) if on_cluster else set())
    write_tables(sweep, rows, finished)
    console.print(shown(sweep, rows))
    return 0 if all(row["state"] in (FINISHED, RUNNING) for row in rows) else 1


def _site(name: str | None, sweep: Sweep, words: Sequence[str]) -> Site | None:
    """None: this machine. A sweep that was submitted goes on where it was."""
    own = sweep.path / "site.yaml"
    chosen = name or (str(own) if own.is_file() else None)
    settings = [word for word in words if word.startswith(WORD)]
    if chosen is None:
        if settings:
            raise ConfigError(f"{settings[0]} has no effect without --site SITE; name the cluster")
        return None
    return load_site(chosen, settings)


def _folder(words: Sequence[str]) -> Path:
    paths = [word for word in words[1:] if not is_override(word)]
    if len(paths) != 1:
        raise ConfigError(f"{words[0]} needs one sweep; give runs/SWEEP")
    return Path(paths[0])
