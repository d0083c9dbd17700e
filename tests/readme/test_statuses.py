"""The table of exit statuses stands where runs are started by hand and where they are jobs: it is one table, of all statuses."""

import re

from llm.train import exits
from tests.checkout import ROOT


def table(page: str) -> str:
    """The rows below `| status | what happened`."""
    found = re.search(r"^\| status \| what happened.*\n(?:\|.*\n)+", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert found, f"docs/{page} has no table of statuses"
    return found.group()


def test_both_pages_have_the_same_table():
    assert table("long-runs.md") == table("cluster.md")


def test_every_status_has_a_row():
    rows = re.findall(r"^\| (\d+) \|", table("long-runs.md"), re.MULTILINE)
    assert set(map(int, rows)) == {exits.DONE, exits.MEND, exits.STOPPED, exits.BAD_STEPS, exits.HUNG, exits.UNFIT}
