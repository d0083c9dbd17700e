"""What befalls a run from outside, as an error with one sentence: a disk that is full, ranks that are gone."""

import errno

import torch.distributed as dist

from llm.errors import BraidError, CheckpointError
from llm.train.checkpoint_files import checkpoints
from llm.train.run_folder import RunFolder

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class LostRanks(BraidError):
    """A collective failed, since another rank has ended. Starting again is what helps, as after any crash."""

    status = 1


def in_words(error: Exception, folder: RunFolder, rank: int, step: int) -> BraidError | None:
    """None: an error of another kind, which ends with its traceback. step: the last one done."""
    if isinstance(error, BraidError):
        return error
    newest = next(iter(checkpoints(folder.checkpoints)), None)
    saved = "no checkpoint yet" if newest is None else f"checkpoint {newest} is the newest, and untouched"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return CheckpointError(
            f"{folder.path} cannot be written ({error}) after step {step}; {saved}: "
            f"make room, then resume with `pretrain.py {folder.path}`"
        )
    # gloo has no class of its own; its messages name its source file
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
        said = str(error).partition("] ")[2].partition(". ")[0] or str(error)
        return LostRanks(
            f"rank {rank} lost the others after step {step} ({said}); {saved}; what ended first says why, or was killed: "
            f"go on with `pretrain.py {folder.path}`"
        )
    return None
