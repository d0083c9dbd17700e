"""A copy of tensors in host memory, made fast: one block, kept from copy to copy and page-locked where the tensors are on a GPU."""

from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor

from llm.train.shards import Shard

ALIGNMENT = 64


class HostCopy:
    """Holds one copy. The block is registered with CUDA, not made by torch's pinned allocator, which rounds up to powers of two."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"
        self._block = torch.empty(0, dtype=torch.uint8)

    def of(self, shards: dict[str, Shard]) -> dict[str, Shard]:
        """The same shards in the block; those of the call before are overwritten."""
        if self.cuda:
            # a thread starts on the first device
            torch.cuda.set_device(self.device)
        self._reserve(sum(_room(tensor) for shard in shards.values() for tensor in shard.tensors.values()))
        copies, offset = {}, 0
        for name, (tensors, metadata) in shards.items():
            copies[name] = Shard({}, metadata)
            for key, tensor in tensors.items():
                copy = self._block[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                copies[name].tensors[key] = copy.copy_(tensor, non_blocking=True)
                offset += _room(tensor)
        if self.cuda:
            torch.cuda.current_stream(self.device).record_event().synchronize()
        return copies

    def free(self) -> None:
        if self.cuda and len(self._block):
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._block.data_ptr()))
        self._block = self._block[:0].clone()

    def _reserve(self, size: int) -> None:
        if size <= len(self._block):
            return
        self.free()
        # huge pages: the first copy, which takes the memory, is three times as fast
        pages = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
        pages.madvise(MADV_HUGEPAGE)
        self._block = torch.frombuffer(pages, dtype=torch.uint8)
        if self.cuda:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self._block.data_ptr(), size, 0))


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
