"""What must hold of a run that was hit, and what hitting it cost."""

import re
from collections import defaultdict
from typing import Any

import torch
from safetensors.torch import load_file

from llm.train import checkpoint_files as files
from tests.train.chaos.injector import HITS
from tests.train.chaos.plan import PLAN, read_plan
from tests.train.chaos.run import Chaos
from tests.train.test_resume import records

# of a place: the function that must be on the stack of its hits
FUNCTIONS = {
    "read": "TokenStream.rows",
    "forward": "LossOnly.forward",
    "backward": "DeepSpeedEngine.backward",
    "update": "DeepSpeedEngine.step",
    "write": "write",
    "rename": "Path.rename",
    "latest": "write_text",
}
SAVED = r"stopped at step \d+ on request \({}\), saved in \S+/step-\d+; go on with `pretrain.py \S+`; starting again in 0 s"
CRASHED = (
    r"crashed \(.*\) (before the first step|at or soon after step \d+); "
    r"(no checkpoint yet|checkpoint step-\d+ is the newest); starting again in \d+ s"
)
GONE = SAVED.format("its launcher is gone")
# of a kind: what the supervisor says of the start that it ended
SENTENCES = {
    "kill rank": CRASHED,
    "flip": CRASHED,
    "kill launcher": GONE,
    "kill deepspeed": GONE,
    "term rank": SAVED.format("SIGTERM"),
    "term launcher": SAVED.format("SIGTERM"),
    "term deepspeed": GONE,
    "stall": r"hung: rank \d has been in .* every thread's stack is in \S+; none came of rank\(s\) \d, stopped or dead; "
    r"checkpoints are untouched: go on with `pretrain.py \S+`; starting again in \d+ s",
    "full disk": r"not started again, as the next start would end alike: .*No space left on device.*(untouched|no checkpoint yet): "
    r"make room, then \w+( \w+)* with `pretrain.py \S+`",
}


def all_hits_happened(chaos: Chaos) -> None:
    """Each in its place, as the stack of that moment shows, and each ended a start with a sentence of its own."""
    plan, hits = read_plan(chaos.folder / "hit"), chaos.hits()
    assert [hit["number"] for hit in hits] == [hit.number for hit in plan], f"{PLAN} and {HITS} differ"
    for hit in hits:
        function = FUNCTIONS[hit["place"]]
        assert any(line.endswith(f" {function}") for line in hit["stack"]), (hit["place"], hit["stack"])
    sentences = chaos.sentences()
    assert len(sentences) == len(hits), "\n".join(sentences)
    for hit, sentence in zip(hits, sentences, strict=True):
        assert re.search(SENTENCES[hit["kind"]], sentence), f"{hit['number']} {hit['kind']}: {sentence}"
    goes_on_from_the_newest(chaos)
    # and those that outlive a rank say so
    killed = sum(hit["kind"] in ("kill rank", "flip") for hit in hits)
    assert len(re.findall(r"error: rank \d lost the others after step \d+ .* go on with `pretrain.py", chaos.said())) >= killed
    flips = sum(hit["kind"] == "flip" for hit in hits)
    assert len(set(re.findall(r"\S+/step-\d+ is not whole \(the content of .* has changed\)", chaos.said()))) == flips


def goes_on_from_the_newest(chaos: Chaos) -> None:
    """After a crash, the next start begins behind the checkpoint that was named; before it, where a bit of that is flipped."""
    flipped = set(re.findall(r"/step-(\d+) is not whole", chaos.said()))
    for hit, sentence in zip(chaos.hits(), chaos.sentences(), strict=True):
        if hit["kind"] == "kill rank":
            newest = re.search(r"checkpoint step-(\d+) is the newest", sentence)
            _, following = around(chaos, hit)
            behind, named = (following or {"step": 1})["step"] - 1, int(newest[1]) if newest else 0
            assert following is None or behind == named or (str(named) in flipped and behind < named), sentence


def around(chaos: Chaos, hit: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """The last step that the start that was hit began, soon or some steps later; the next start's first batch, if any."""
    batches = chaos.data("hit", 0)
    own = next((line["pid"] for line in reversed(batches) if line["time"] <= hit["time"]), None)
    reached = max((line["step"] for line in batches if line["pid"] == own), default=0)
    return reached, next((line for line in batches if line["time"] > hit["time"] and line["pid"] != own), None)


def same_data(chaos: Chaos) -> None:
    """Each start was handed, at each step, what the undisturbed run was; steps follow one another."""
    for rank in range(chaos.ranks):
        whole = {line["step"]: (line["rows"], line["hash"]) for line in chaos.data("whole", rank)}
        seen: dict[int, list[int]] = defaultdict(list)
        for line in chaos.data("hit", rank):
            assert (line["rows"], line["hash"]) == whole[line["step"]], f"step {line['step']} on rank {rank}"
            seen[line["pid"]].append(line["step"])
        assert set().union(*seen.values()) == set(whole)
        for steps in seen.values():
            assert steps == list(range(steps[0], steps[-1] + 1))


def same_end(chaos: Chaos) -> None:
    """Weights, optimizer states, generators and carried states of the last checkpoint, bit for bit; and every record."""
    whole, hit = (chaos.runs / name for name in ("whole", "hit"))
    assert records(whole) == records(hit)
    last, other = (files.checkpoints(run / "checkpoints")[0] for run in (whole, hit))
    assert last.name == other.name == (hit / "checkpoints" / files.LATEST).read_text().strip()
    assert files.damage(other) is None
    names = sorted(str(path.relative_to(last)) for path in last.rglob("*.safetensors"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*.safetensors"))
    for name in names:
        a, b = load_file(last / name), load_file(other / name)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name} {key}"


def nothing_is_left(chaos: Chaos) -> None:
    """No temporary files or folders, no processes."""
    run = chaos.runs / "hit"
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    assert not list((chaos.folder / "hit" / "tmp").iterdir())
    assert not chaos.processes()


def table(chaos: Chaos) -> str:
    """Of each hit: where, what, and what it cost: steps done again, and seconds until the next start had its first batch."""
    rows = ["| | place | kind | rank | step | event | steps again | seconds |", "|" + "---|" * 8]
    for hit in chaos.hits():
        reached, following = around(chaos, hit)
        again = 0 if following is None else reached - following["step"] + 1
        seconds = 0.0 if following is None else following["time"] - hit["time"]
        event = f"{hit['event']} of {hit['events']}"
        cells = [hit["number"] + 1, hit["place"], hit["kind"], hit["rank"], hit["step"], event, again, f"{seconds:.1f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)
