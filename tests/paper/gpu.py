"""A GPU without values: what a step would do on one, with packages' kernels replaced by records of their calls.

Tensors are FakeTensors on a device of PyTorch's PrivateUse1, so that a copy to or from host memory is one, and mixing host and
device is an error, as on CUDA. (A fake "cuda" aborts in PyTorch's CPU build.) Reading a value raises. What is known in host memory,
where batches are made, has values: `Host`.
"""

import contextlib
import types
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "papergpu"


def register() -> None:
    """Once in a process, for good: which is why these tests have one of their own."""
    module = types.SimpleNamespace(
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
    )
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=module)


class Host(Tensor):
    """A tensor with values in host memory, among those without; sent to the device it has none."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        moved = function is Tensor.to and torch.device(args[1] if len(args) > 1 else kwargs["device"]).type == DEVICE
        if moved:
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=DEVICE)
        with unset_fake_temporarily():
            return super().__torch_function__(function, types, args, kwargs or {})


class Crossings(TorchDispatchMode):
    """Every copy between device and host, as "device to host: shape dtype"."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        sources = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        targets = {x.device.type for x in tree_leaves(out) if isinstance(x, Tensor)}
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and len(sources | targets) > 1:
            (first, *_) = (x for x in tree_leaves(args) if isinstance(x, Tensor))
            self.seen.append(f"{'/'.join(sorted(sources))} to {'/'.join(sorted(targets))}: {tuple(first.shape)} {first.dtype}")
        return out


@contextlib.contextmanager
def without_values() -> Iterator[Crossings]:
    """Tensors made inside have no values; copies to and from the device are listed."""
    with FakeTensorMode(), Crossings() as crossings:
        yield crossings
