"""Imports the packages of `requirements.txt` from VENV/peers, and leaves no trace of it.

`load("xlstm.blocks.mlstm.layer")` runs that module and what it imports, but not the `__init__` of the packages around it, many of
which import Triton kernels. Afterwards neither `sys.path` nor `sys.modules` knows the peers: other tests of the process, and
`transformers`, which takes other paths where it finds them, see the project's environment alone.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

FOLDER = Path(sys.prefix) / "peers"

# What cannot be imported here, or is not installed, with the names that are imported from it and never called.
ABSENT = {
    "einx": (),
    "mamba_ssm.ops.triton.layer_norm": ("_layer_norm_fwd",),
    "mamba_ssm.ops.triton.ssd_combined": ("mamba_chunk_scan_combined",),
    "selective_scan_cuda": (),
}

_loaded: dict[str, ModuleType] = {}


def load(name: str) -> ModuleType:
    """The peers' module of that name. What it imports only when called is not found: import the part that does not."""
    with _visible():
        packages = name.split(".")[:-1]
        for depth in range(len(packages)):
            _bare(".".join(packages[: depth + 1]))
        return importlib.import_module(name)


@contextmanager
def _visible() -> Iterator[None]:
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"{FOLDER} holds the packages of tests/peers/requirements.txt; `make peers` installs them")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_peer(name)}
    sys.modules |= {name: _absent(name, keys) for name, keys in ABSENT.items()} | _loaded
    sys.path.insert(0, str(FOLDER))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path.remove(str(FOLDER))
        _loaded.update({name: sys.modules.pop(name) for name in list(sys.modules) if _is_peer(name)})
        sys.modules |= hidden


def _is_peer(name: str) -> bool:
    root = name.partition(".")[0]
    return root in ABSENT or (FOLDER / root).is_dir()


def _bare(name: str) -> None:
    """Enters a package without running its `__init__`."""
    if name in sys.modules:
        return
    parent, _, child = name.rpartition(".")
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else [str(FOLDER)])
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{FOLDER} holds no package {name}", name=name)
    package = ModuleType(name)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    sys.modules[name] = package
    if parent:
        setattr(sys.modules[parent], child, package)


def _absent(name: str, keys: tuple[str, ...]) -> ModuleType:
    module = ModuleType(name)
    for key in keys:
        setattr(module, key, None)
    return module
