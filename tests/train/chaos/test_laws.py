"""The chaos test's own tests: its plan covers everything, and its laws see what is wrong."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.train.chaos import laws
from tests.train.chaos.acts import ACTS
from tests.train.chaos.injector import DATA, HITS
from tests.train.chaos.plan import PLACES, Hit, draw, every_place, write_plan
from tests.train.chaos.run import Chaos

CRASH = "supervise: run crashed (status 247, SIGKILL) at or soon after step 2; no checkpoint yet; starting again in 0 s\n"
LOST = "error: rank 0 lost the others after step 1 (Connection closed by peer); no checkpoint yet; go on with `pretrain.py run`\n"


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_hits_every_place_with_every_kind(seed: int) -> None:
    hits = draw(seed, 2, every_place(seed))
    assert len(hits) >= 20
    assert min(Counter(hit.place for hit in hits)[place] for place in PLACES) >= 2
    assert {hit.kind for hit in hits} == set(ACTS) == set(laws.SENTENCES)
    assert hits == draw(seed, 2, every_place(seed))
    assert hits != draw(seed + 1, 2, every_place(seed + 1))


def chaos_of(folder: Path) -> Chaos:
    """Logs of a run on one rank that was hit in its second step."""
    hit = Hit(0, "forward", "kill rank", 0, 3, 0.5)
    write_plan(folder / "hit", [hit])
    (folder / "hit" / "said").write_text(LOST + CRASH)
    line = asdict(hit) | {"time": 2.5, "step": 2, "event": 3, "events": 6, "stack": ["x.py:1 f", "y.py:2 LossOnly.forward"]}
    (folder / "hit" / HITS).write_text(json.dumps(line) + "\n")
    (folder / "whole").mkdir()
    steps = {"whole": [(1, 1), (2, 1), (3, 1)], "hit": [(1, 7), (2, 7), (1, 8), (2, 8), (3, 8)]}
    for name, handed in steps.items():
        batches = [
            {"step": step, "rows": [[step]], "hash": f"{step}", "pid": pid, "time": k + 1.0} for k, (step, pid) in enumerate(handed)
        ]
        (folder / name / DATA.format(0)).write_text("".join(json.dumps(batch) + "\n" for batch in batches))
    return Chaos(folder, [], 1, 1.0)


def check(chaos: Chaos) -> None:
    laws.all_hits_happened(chaos)
    laws.same_data(chaos)


def test_laws_hold_of_a_run_that_went_well(tmp_path: Path) -> None:
    chaos = chaos_of(tmp_path)
    check(chaos)
    assert laws.table(chaos).endswith("| 1 | forward | kill rank | 0 | 2 | 3 of 6 | 2 | 0.5 |")


def without(word: str) -> Callable[[str], str]:
    return lambda text: "".join(line for line in text.splitlines(keepends=True) if word not in line)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        # a hit that did not happen, one in another place, one without its sentence
        (HITS, lambda text: ""),
        (HITS, lambda text: text.replace("LossOnly", "Other")),
        ("said", without("supervise")),
        ("said", without("lost")),
        # a start from another checkpoint than was said
        ("said", lambda text: text.replace("no checkpoint yet; starting", "checkpoint step-1 is the newest; starting")),
        # other data, a step left out, one done twice in a start
        (DATA.format(0), lambda text: text.replace('"hash": "3"', '"hash": "4"')),
        (DATA.format(0), lambda text: text.replace('"rows": [[3]]', '"rows": [[4]]')),
        (DATA.format(0), without('"step": 3')),
        (DATA.format(0), lambda text: text + text.splitlines()[-1] + "\n"),
    ],
)
def test_laws_see_what_went_wrong(name: str, harm: Callable[[str], Any], tmp_path: Path) -> None:
    chaos = chaos_of(tmp_path)
    path = tmp_path / "hit" / name
    path.write_text(harm(path.read_text()))
    with pytest.raises(AssertionError):
        check(chaos)
