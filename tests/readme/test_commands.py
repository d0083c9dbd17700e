"""The README's ```bash blocks run as they stand, in a copy of the checkout; the long tier adds the demo, with few steps."""

import sys

import pytest

from tests.checkout import ROOT, copy_to, environment, run
from tests.readme.fences import blocks

# Long commands read these and do less; everything else about them stays as a reader meets it.
REDUCED = {"BRAID_DEMO_STEPS": "8"}
SECONDS_PER_BLOCK = 240


@pytest.mark.multirank
@pytest.mark.timeout(600)
@pytest.mark.parametrize("demo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["commands", "demo"])
def test_the_readmes_commands_run(tmp_path, demo):
    checkout = copy_to(tmp_path / "braid")
    runnable = [block for block in blocks((ROOT / "README.md").read_text(), "bash") if block.runs and block.commands.strip()]
    runnable = [block for block in runnable if ("make demo" in block.commands) == demo]
    assert runnable, "README.md holds no block that is run"
    # Packages come from the running environment, the project's own code from the copy.
    env = environment(VENV=sys.prefix, ENV_READY="1", PYTHONPATH=str(checkout), **REDUCED)
    for block in runnable:
        done = run(["bash", "-euo", "pipefail", "-c", block.commands], checkout, SECONDS_PER_BLOCK, env)
        tail = "\n".join(done.stdout.splitlines()[-60:])
        assert done.returncode == 0, f"README.md line {block.line}: exit status {done.returncode}\n{block.commands}\n{tail}"
