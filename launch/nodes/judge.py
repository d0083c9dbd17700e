"""From the reports of all tasks to what is wrong, and whose fault it is.

A node is at fault for what it finds wrong with itself, for not answering, and for being unlike most others. What more than half of
the nodes have is nobody's fault: excluding them would leave none. Someone must mend it, unless it is silence, which a busy file
system or network makes too: that may pass. A slow link has two ends; at fault is the one whose other link is slow too.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from launch.nodes.limits import Limits
from launch.nodes.report import Report


@dataclass(frozen=True)
class Finding:
    """host: the node at fault; None: none is. passes: by itself, maybe; else someone must mend it, whichever nodes are taken."""

    host: str | None
    sentence: str
    passes: bool = False


RUN_FOLDER, SILENT = "run folder", "silent"
# host, what, sentence
Seen = tuple[str, str, str]


def judge(reports: Sequence[Report], hosts: Sequence[str], limits: Limits) -> list[Finding]:
    """hosts: all that were asked, of which some may have answered nothing."""
    by_host: dict[str, list[Report]] = {host: [] for host in hosts}
    for report in reports:
        by_host.setdefault(report.host, []).append(report)
    found = [*_silent(by_host, limits), *_own(by_host), *_unlike(by_host), *_clocks(by_host, limits), *_links(reports, limits)]
    return _blame(found, len(by_host))


def _silent(by_host: Mapping[str, list[Report]], limits: Limits) -> list[Seen]:
    most = Counter(len(mine) for mine in by_host.values() if mine)
    usual = most.most_common(1)[0][0] if most else 0
    found = []
    for host, mine in by_host.items():
        if not mine:
            found.append((host, SILENT, f"{host} did not answer within {limits.seconds:g} s"))
        elif len(mine) < usual:
            found.append((host, SILENT, f"{host}: only {len(mine)} of {usual} tasks answered within {limits.seconds:g} s"))
        elif all(report.clock is None for report in mine) and any(report.clock is not None for report in _all(by_host)):
            found.append((host, SILENT, f"{host} does not reach rank 0's node over the network"))
    return found


def _own(by_host: Mapping[str, list[Report]]) -> list[Seen]:
    return [
        (report.host, what, f"{report.host}: {sentence}")
        for mine in by_host.values()
        for report in mine
        for what, sentence in report.faults.items()
    ]


def _unlike(by_host: Mapping[str, list[Report]]) -> list[Seen]:
    """Facts that differ from most nodes'; with as many on either side, from those of the first."""
    found = []
    values: dict[str, dict[str, str]] = defaultdict(dict)
    for host, mine in by_host.items():
        for report in mine:
            for name, value in report.facts.items():
                values[name].setdefault(host, value)
    for name, held in values.items():
        usual, count = Counter(held.values()).most_common(1)[0]
        like = next(host for host, value in held.items() if value == usual)
        for host, value in held.items():
            if value != usual:
                law = f"{name} ({value}) must be that of {count} other node(s), such as {like} ({usual})"
                found.append((host, name, f"{host}: {law}; install or mount the same there"))
    return found


def _clocks(by_host: Mapping[str, list[Report]], limits: Limits) -> list[Seen]:
    clocks = {
        host: median(report.clock for report in mine if report.clock is not None)
        for host, mine in by_host.items()
        if any(report.clock is not None for report in mine)
    }
    if len(clocks) < 2:
        return []
    # of two, the first is right
    right = median(clocks.values()) if len(clocks) > 2 else next(iter(clocks.values()))
    return [
        (host, "clock", f"{host}: its clock is {clock - right:+.1f} s off the others', more than {limits.skew:g} s; set it by NTP")
        for host, clock in clocks.items()
        if abs(clock - right) > limits.skew
    ]


def _links(reports: Sequence[Report], limits: Limits) -> list[Seen]:
    """Ranks whose best link is slow beside the best ones of others."""
    host_of = {report.rank: report.host for report in reports}
    found: list[Seen] = []
    for kind, words in (("inside", "links inside the node"), ("between", "links to other nodes")):
        mine = {report.rank: [link for link in report.links if link.kind == kind] for report in reports}
        best = {rank: max(link.gbytes or 0.0 for link in links) for rank, links in mine.items() if links}
        usual = median(best.values()) if best else 0.0
        for rank, speed in best.items():
            # two nodes have one link, and its speed does not say whose fault it is; of a dead one, the first node is right
            alone = kind == "between" and len({host_of.get(link.peer) for link in mine[rank]}) == 1
            slow = speed == 0 and host_of[rank] != reports[0].host if alone else speed <= limits.link * usual
            if slow:
                law = f"below {limits.link:g} of the others' {usual:.2g}"
                found.append((host_of[rank], kind, f"{host_of[rank]}: {words} of rank {rank} reach {speed:.2g} GB/s, {law}"))
    return found


def _blame(found: Sequence[Seen], hosts: int) -> list[Finding]:
    having: dict[str, set[str]] = defaultdict(set)
    for host, what, _ in found:
        having[what].add(host)

    def common(what: str) -> bool:
        return what == RUN_FOLDER if hosts == 1 else 2 * len(having[what]) > hosts

    return [
        Finding(None if common(what) else host, sentence, passes=what == SILENT) for host, what, sentence in dict.fromkeys(found)
    ]


def _all(by_host: Mapping[str, list[Report]]) -> list[Report]:
    return [report for mine in by_host.values() for report in mine]
