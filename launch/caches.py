"""Compiled kernels on each node's own disk: a shared one is slow to load them from, for every rank anew, and homes are small.

With BRAID_NODE_CACHE=/tmp/FOLDER, as slurm/pretrain.sbatch has it, the caches of Triton, Inductor, torch's and Braid's extensions
and CUDA lie in there, unless variables say where else. What is compiled once on a node serves all of its ranks, and later jobs.
"""

import os
import stat
import sys
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "BRAID_NODE_CACHE"
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "BRAID_OPS_CACHE": "ops",
    "CUDA_CACHE_PATH": "cuda",
}


def use_node_cache(environment: MutableMapping[str, str] | None = None) -> None:
    """Before a kernel is asked for. A folder that others may write to is not used: what lies in it is run."""
    environment = os.environ if environment is None else environment
    if not environment.get(VARIABLE):
        return
    root = Path(environment[VARIABLE])
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        print(
            f"{VARIABLE} ({root}) cannot be used ({error.strerror}): kernels are cached where they are by default", file=sys.stderr
        )
        return
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        print(f"{VARIABLE} ({root}) must be yours, and writable for nobody else; kernels are cached elsewhere", file=sys.stderr)
        return
    for name, folder in CACHES.items():
        environment.setdefault(name, str(root / folder))
