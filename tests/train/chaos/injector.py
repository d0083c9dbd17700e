"""Wraps the places of a run in this rank, counts the Python events in them, and acts at the one that the plan names.

A place is a function. While it runs, `sys.setprofile` sees every call and return below it, in Python or C, in its own thread: a
moment is one of these events. The stack at that event goes into the log before anything is done, and proves where the hit was.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import xxhash

from tests.train.chaos.acts import ACTS
from tests.train.chaos.plan import Hit, read_plan

HITS, DATA, EVENTS = "hits.jsonl", "data-{}.jsonl", "events-{}.json"
# seconds between a watchdog's looks: training steps here take milliseconds
POLL = 0.2


class Injector:
    """Of one rank and start. Without a plan it counts each place's events, which a later run's moments are drawn from."""

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank = folder, rank
        self.step, self.phase, self.path = 0, "start", Path()
        plan = read_plan(folder)
        done = {line["number"] for line in read_lines(folder / HITS)}
        left = [hit for hit in plan if hit.number not in done]
        self.hit: Hit | None = left[0] if left and left[0].rank == rank else None
        self.calls: Counter[str] = Counter()
        self.counting = not plan
        self.events = {} if self.counting else json.loads((folder / EVENTS.format(rank)).read_text())
        self._wrap()

    def close(self) -> None:
        if self.counting:
            (self.folder / EVENTS.format(self.rank)).write_text(json.dumps(self.events))

    def _wrap(self) -> None:
        from llm.train.start import quiet

        quiet()
        from deepspeed.runtime.engine import DeepSpeedEngine

        from llm.data import Batches, TokenStream
        from llm.train import checkpoint_files, save
        from llm.train.deepspeed_config import LossOnly
        from llm.train.guard import Guard

        places: list[tuple[str, Any, str, Callable[..., bool]]] = [
            ("read", TokenStream, "rows", always),
            ("forward", LossOnly, "forward", always),
            ("backward", DeepSpeedEngine, "backward", always),
            ("update", DeepSpeedEngine, "step", lambda engine, *_: engine.is_gradient_accumulation_boundary()),
            ("write", save, "write", always),
            ("rename", Path, "rename", lambda path, *_: path.name.startswith(".step-") and path.suffix == ".tmp"),
            ("latest", checkpoint_files, "write_text", lambda path, *_: path.name == checkpoint_files.LATEST),
        ]
        for place, owner, name, meant in places:
            setattr(owner, name, self._watched(place, getattr(owner, name), meant))
        Batches.__next__ = self._logged(Batches.__next__)  # type: ignore[method-assign]
        Guard.beat = self._followed(Guard.beat)  # type: ignore[method-assign]
        Guard.__init__.__defaults__ = (POLL,)

    def _followed(self, beat: Callable[..., None]) -> Callable[..., None]:
        """Where the loop is."""

        def beating(guard: Any, step: int, phase: str, *args: Any, **settings: Any) -> None:
            self.step, self.phase, self.path = step, phase, guard.folder.path
            beat(guard, step, phase, *args, **settings)

        return beating

    def _logged(self, take: Callable[..., Any]) -> Callable[..., Any]:
        """What this rank trains on: rows by their global number, and a hash of tokens, labels and documents."""

        def taking(batches: Any) -> Any:
            rows = [mine.tolist() for mine in batches.rows_by_micro_batch()]
            micro_batches = take(batches)
            content = xxhash.xxh3_128()
            for batch in micro_batches:
                for tensor in (batch.tokens_BT, batch.labels_BT, batch.docs.starts_BT):
                    content.update(tensor.numpy().tobytes())
            line = {"step": self.step, "rows": rows, "hash": content.hexdigest(), "pid": os.getpid(), "time": time.time()}
            append(self.folder / DATA.format(self.rank), line)
            return micro_batches

        return taking

    def _watched(self, place: str, function: Callable[..., Any], meant: Callable[..., bool]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*args: Any, **settings: Any) -> Any:
            if not meant(*args):
                return function(*args, **settings)
            self.calls[place] += 1
            hit = self.hit
            due = hit is not None and hit.place == place and self.calls[place] > hit.calls
            if not due and not self.counting:
                return function(*args, **settings)
            seen, moment = 0, int(hit.moment * self.events[place]) if hit is not None and due else -1

            def event(frame: FrameType, *_: Any) -> None:
                nonlocal seen
                seen += 1
                if hit is self.hit and hit is not None and seen > moment:
                    stack = stack_of(frame)
                    if function.__code__ in [each.f_code for each in stack]:
                        self._act(hit, stack, seen, args)

            sys.setprofile(event)
            try:
                return function(*args, **settings)
            finally:
                sys.setprofile(None)
                if self.counting:
                    self.events[place] = min(seen, self.events.get(place, seen))

        return watched

    def _act(self, hit: Hit, stack: list[FrameType], seen: int, args: tuple) -> None:
        self.hit = None
        line = asdict(hit) | {"step": self.step, "phase": self.phase, "event": seen, "events": self.events[hit.place]}
        names = [f"{Path(each.f_code.co_filename).name}:{each.f_lineno} {each.f_code.co_qualname}" for each in stack]
        append(self.folder / HITS, line | {"pid": os.getpid(), "time": time.time(), "stack": names})
        ACTS[hit.kind](self.path, hit)


def always(*_: Any) -> bool:
    return True


def stack_of(frame: FrameType | None) -> list[FrameType]:
    """Innermost first."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
