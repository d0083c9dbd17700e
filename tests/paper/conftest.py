"""The GPU path on a machine without one: collected by `make gpu-paper` alone, which has the packages and names an architecture."""

import os

if os.environ.get("GPU_PAPER") in ("80", "90"):
    from tests.paper import ahead

    ahead.install(int(os.environ["GPU_PAPER"]))
else:
    collect_ignore_glob = ["test_*.py"]
