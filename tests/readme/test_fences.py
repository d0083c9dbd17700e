"""The README's blocks are found, and none is skipped by a mistake in its tag."""

import pytest

from tests.readme.fences import blocks

PAGE = """# Title
```bash
make demo
make test        # what CI runs
```
```python
make = 1
```
```bash skip=cluster
sbatch job
```
"""


def test_blocks_come_in_order_with_their_tags():
    demo, job = blocks(PAGE, "bash")
    assert (demo.line, demo.runs, demo.text) == (2, True, "make demo\nmake test        # what CI runs\n")
    assert (job.line, job.runs, job.tags) == (9, False, ("skip=cluster",))


def test_a_run_leaves_out_the_commands_that_would_start_it_again():
    assert blocks(PAGE, "bash")[0].commands == "make demo\n"


@pytest.mark.parametrize("tag", ["skip", "skip=", "skip=slow", "no-run"])
def test_an_unknown_tag_is_refused(tag):
    with pytest.raises(ValueError, match=r"line 1: .* is no known tag"):
        blocks(f"```bash {tag}\nfalse\n```\n", "bash")


def test_a_fence_without_end_is_refused():
    with pytest.raises(ValueError, match="line 2: the fenced block does not end"):
        blocks("text\n```bash\nfalse\n", "bash")
