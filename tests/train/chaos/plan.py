"""Which hits a run gets, and when: drawn from a seed."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

PLACES = ("read", "forward", "backward", "update", "write", "rename", "latest")
# the first rank alone gives a checkpoint its name
FIRST_RANK = {"rename", "latest"}
PLAN = "plan.json"
# Each place is hit by a kill, and by two kinds of this deck, dealt at random.
DECK = [
    *3 * ["kill launcher"],
    *2 * ["kill deepspeed"],
    *3 * ["term rank"],
    *2 * ["term launcher"],
    *2 * ["term deepspeed"],
    *2 * ["stall"],
]
OWN_PLACE = [*2 * [("write", "full disk")], *2 * [("latest", "flip")]]


@dataclass(frozen=True)
class Hit:
    """kind: what is done, by which rank. calls: of the place by that rank, in this start, that pass unharmed. moment: part of the
    next call's Python events that pass too, 0 to 1.
    """

    number: int
    place: str
    kind: str
    rank: int
    calls: int
    moment: float


def every_place(seed: int) -> list[tuple[str, str]]:
    """Three kinds in each place, two more where a disk fills up and two where a bit flips; in any order."""
    rng = random.Random(seed)
    deck = rng.sample(DECK, len(DECK))
    found = [(place, kind) for k, place in enumerate(PLACES) for kind in ("kill rank", *deck[2 * k : 2 * k + 2])] + OWN_PLACE
    return rng.sample(found, len(found))


def draw(seed: int, ranks: int, kinds: Iterable[tuple[str, str]]) -> list[Hit]:
    """A moment for each (place, kind)."""
    rng = random.Random(seed)
    hits = []
    for number, (place, kind) in enumerate(kinds):
        rank = 0 if place in FIRST_RANK else rng.randrange(ranks)
        # of a start, a flip must leave an older checkpoint; other places are called several times per step
        calls = rng.choice([1, 2] if kind == "flip" else [0, 1]) if place in ("write", "rename", "latest") else rng.randrange(1, 9)
        hits.append(Hit(number, place, kind, rank, calls, rng.random()))
    return hits


def write_plan(folder: Path, hits: list[Hit]) -> None:
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(json.dumps([asdict(hit) for hit in hits], indent=1) + "\n")


def read_plan(folder: Path) -> list[Hit]:
    return [Hit(**hit) for hit in json.loads((folder / PLAN).read_text())]
