"""Bytes of tensors that are alive, at every moment: what an allocator would have to have, without its rounding and fragments.

Counted where torch makes tensors, on any device, also of tensors without values (FakeTensorMode). A storage counts once, from the
operation that made it until the last tensor on it is gone. What a kernel takes and gives back inside is not seen.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Use in a `with` block. now: bytes of what was made in it and is alive. peak: the most since the last `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and not x.is_meta:
                self._see(x)
        return made

    def restart(self) -> None:
        self.peak = self.now

    def _see(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
