"""A copy of tensors in host memory, made fast: one block, kept from copy to copy and page-locked where the tensors are on a GPU."""

import torch
from torch import Tensor

from llm.train.shards import Shard

ALIGNMENT = 64


class HostCopy:
    """Holds one copy. The block is registered with CUDA, not made by torch's pinned allocator, which rounds up to powers of two."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._block = torch.empty(0, dtype=torch.uint8)

    def of(self, shards: dict[str, Shard]) -> dict[str, Shard]:
        """The same shards in the block; those of the call before are overwritten."""
        self._reserve(sum(_room(tensor) for shard in shards.values() for tensor in shard.tensors.values()))
        copies, offset = {}, 0
        for name, (tensors, metadata) in shards.items():
            copies[name] = Shard({}, metadata)
            for key, tensor in tensors.items():
                copy = self._block[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                copies[name].tensors[key] = copy.copy_(tensor, non_blocking=True)
                offset += _room(tensor)
        if self.cuda:
            torch.cuda.synchronize()
        return copies

    def free(self) -> None:
        if self.cuda and len(self._block):
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._block.data_ptr()))
        self._block = self._block[:0].clone()

    def _reserve(self, size: int) -> None:
        if size <= len(self._block):
            return
        self.free()
        self._block = torch.empty(size, dtype=torch.uint8)
        if self.cuda:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self._block.data_ptr(), size, 0))


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
