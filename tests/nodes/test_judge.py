"""Who is at fault: planted faults of every kind are found at the node that has them, and at no other."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.nodes.bad_nodes import add_bad_nodes, bad_nodes
from launch.nodes.check import tell
from launch.nodes.judge import RUN_FOLDER, Finding, judge
from launch.nodes.limits import Limits
from launch.nodes.links import pairs
from launch.nodes.report import Link, Report, read_reports
from llm.train.exits import MEND, NAME, UNFIT, read_outcome

LIMITS = Limits()


def cluster(nodes: int, each: int = 2, spoilt: str | None = None) -> list[Report]:
    """Reports of healthy nodes n0, n1, ..., with 1 GB/s everywhere but on links from or to the node `spoilt`."""
    hosts = {rank: f"n{rank // each}" for rank in range(nodes * each)}
    reports = []
    for rank, host in hosts.items():
        links = [
            Link(kind, peer, 0.1 if kind == "between" and spoilt in (host, hosts[peer]) else 1.0 + rank / 100)
            for turn in pairs(hosts, rank)
            for kind, peer in turn
        ]
        reports.append(Report(rank, len(hosts), host, {}, {"code": "abc", "devices": "8 x H100"}, 1000.0 + rank / 1000, links))
    return reports


def changed(reports: list[Report], host: str, **changes) -> list[Report]:
    return [replace(report, **changes) if report.host == host else report for report in reports]


@given(st.integers(1, 9), st.integers(1, 4))
def test_healthy_nodes_are_fit(nodes: int, each: int):
    reports = cluster(nodes, each)
    assert judge(reports, sorted({report.host for report in reports}), LIMITS) == []


@given(st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_each_turn_pairs_ranks_with_one_another_and_each_node_has_two_links(sizes: list[int]):
    hosts = dict(enumerate(f"n{node}" for node, size in enumerate(sizes) for _ in range(size)))
    turns = {rank: pairs(hosts, rank) for rank in hosts}
    for rank, mine in turns.items():
        for turn, partners in enumerate(mine):
            assert len(partners) <= 1
            for kind, peer in partners:
                assert turns[peer][turn] == [(kind, rank)]
                assert (hosts[rank] == hosts[peer]) == (kind == "inside")
    for node in range(len(sizes)):
        first = next(rank for rank in hosts if hosts[rank] == f"n{node}")
        peers = {hosts[peer] for turn in turns[first] for kind, peer in turn if kind == "between"}
        assert len(peers) == min(2, len(sizes) - 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"faults": {"device": "GPU 3 fails (ECC)"}}, "n2: GPU 3 fails (ECC)"),
        ({"faults": {RUN_FOLDER: "run folder /x cannot be written"}}, "n2: run folder /x"),
        ({"facts": {"code": "def", "devices": "8 x H100"}}, "n2: code (def) must be that of 3 other node(s), such as n0 (abc)"),
        ({"facts": {"code": "abc", "devices": "none"}}, "n2: devices (none) must be that of 3 other node(s)"),
        ({"clock": 1007.5}, "n2: its clock is +7.5 s off the others', more than 2 s"),
        ({"clock": None, "links": []}, "n2 does not reach rank 0's node over the network"),
    ],
)
def test_what_one_node_has_is_its_fault(changes: dict, sentence: str):
    found = judge(changed(cluster(4), "n2", **changes), ["n0", "n1", "n2", "n3"], LIMITS)
    assert {finding.host for finding in found} == {"n2"}
    assert all(finding.sentence.startswith(sentence) for finding in found)


def test_what_most_nodes_have_is_none_s():
    reports = [replace(report, faults={RUN_FOLDER: "run folder /x (0.1 GB free) must have 10 GB free"}) for report in cluster(3)]
    found = judge(reports, ["n0", "n1", "n2"], LIMITS)
    assert found
    assert {finding.host for finding in found} == {None}


def test_silence_of_most_nodes_ends_no_run_and_costs_no_node(tmp_path):
    """A busy file system does that to all of them."""
    hosts = ["n0", "n1", "n2", "n3"]
    unreached = [replace(r, clock=None, links=[]) if r.host != "n0" else r for r in cluster(4)]
    for reports in (cluster(1), unreached):
        found = judge(reports, hosts, LIMITS)
        assert len(found) == 3
        assert {(finding.host, finding.passes) for finding in found} == {(None, True)}
        assert tell(found, tmp_path) == UNFIT
        assert read_outcome(tmp_path / NAME).status == UNFIT
    assert bad_nodes(tmp_path) == {}
    # what else is wrong counts beside it
    assert tell([*found, Finding("n0", "n0: its disk")], tmp_path) == UNFIT
    assert set(bad_nodes(tmp_path)) == {"n0"}
    assert tell([*found, Finding(None, "the run folder is full")], tmp_path) == MEND


def test_one_node_alone_is_at_fault_but_for_the_run_folder():
    for what, host in (("temporary folder", "n0"), (RUN_FOLDER, None)):
        assert [f.host for f in judge(changed(cluster(1), "n0", faults={what: "bad"}), ["n0"], LIMITS)] == [host]


def test_a_node_without_an_answer_is_at_fault_and_one_with_fewer():
    reports = [report for report in cluster(4) if report.host != "n1" and report.rank != 7]
    found = judge(reports, ["n0", "n1", "n2", "n3"], LIMITS)
    assert [(f.host, f.sentence) for f in found] == [
        ("n1", "n1 did not answer within 120 s"),
        ("n3", "n3: only 1 of 2 tasks answered within 120 s"),
    ]


@given(st.integers(3, 9), st.data())
def test_slow_links_are_the_fault_of_the_node_that_they_share(nodes: int, data: st.DataObject):
    bad = f"n{data.draw(st.integers(0, nodes - 1))}"
    found = judge(cluster(nodes, spoilt=bad), [f"n{k}" for k in range(nodes)], LIMITS)
    assert {finding.host for finding in found} == {bad}


def test_a_dead_link_of_two_nodes_is_that_of_the_second():
    reports = [replace(r, links=[Link(link.kind, link.peer, None) for link in r.links]) for r in cluster(2, 1)]
    assert {finding.host for finding in judge(reports, ["n0", "n1"], LIMITS)} == {"n1"}


def test_bad_nodes_are_noted_once(tmp_path):
    assert add_bad_nodes(tmp_path, [("n2", "its disk"), ("n2", "its clock"), ("n3", "silent")]) == ["n3", "n2"]
    assert add_bad_nodes(tmp_path, [("n2", "again")]) == []
    lines = (tmp_path / "bad-nodes.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["n3", "n2"]
    assert bad_nodes(tmp_path)["n2"].endswith("its disk")


def test_reports_are_read_as_written_and_damaged_ones_left_out(tmp_path):
    (tmp_path / "health").mkdir()
    reports = cluster(2)
    for report in reports:
        report.write(tmp_path)
    (tmp_path / "health" / "rank-1.json").write_text('{"rank": 1')
    assert read_reports(tmp_path) == [reports[0], *reports[2:]]
