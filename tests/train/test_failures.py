"""What befalls a run from outside ends in one sentence; what it leaves in its folder never misleads a later start."""

import errno
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from llm.data import Manifest
from llm.errors import CheckpointError, DataError
from llm.train import checkpoint_files as files
from llm.train.config import load_config
from llm.train.failures import LostRanks, in_words
from llm.train.run_folder import RunFolder

GLOO = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:17106. This is typically ..."


def made(folder: Path, step: int) -> Path:
    """A checkpoint, published as training does it."""
    temporary = files.temporary_of(folder, step)
    (temporary / files.WEIGHTS).mkdir(parents=True)
    (temporary / files.weights_of(0)).write_bytes(bytes(step))
    files.publish(temporary, folder / files.name_of(step), files.seal(temporary, [files.weights_of(0)]))
    return folder / files.name_of(step)


def names(folder: Path) -> list[str]:
    return [path.name for path in files.checkpoints(folder)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_without_room(number: int, tmp_path: Path) -> None:
    made(tmp_path / "checkpoints", 8)
    error = in_words(OSError(number, os.strerror(number)), RunFolder(tmp_path), 0, 9)
    assert isinstance(error, CheckpointError)
    assert os.strerror(number) in str(error)
    assert "after step 9; checkpoint " in str(error)
    assert "step-8 is the newest, and untouched: make room, then resume with `pretrain.py" in str(error)


@pytest.mark.parametrize("lost", [RuntimeError(GLOO), dist.DistBackendError("NCCL error: remote process exited")])
def test_lost_ranks(lost: RuntimeError, tmp_path: Path) -> None:
    error = in_words(lost, RunFolder(tmp_path), 3, 0)
    assert isinstance(error, LostRanks)
    assert str(error).startswith("rank 3 lost the others after step 0 (")
    assert "; no checkpoint yet; " in str(error)
    assert error.status not in (0, 2, 75, 76, 77)


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes do not fit"), FileNotFoundError(errno.ENOENT, "no such file"), ValueError("x")):
        assert in_words(error, RunFolder(tmp_path), 0, 0) is None
    known = DataError("shard-7 is damaged")
    assert in_words(known, RunFolder(tmp_path), 0, 0) is known


def test_a_kill_between_rename_and_latest_is_mended(tmp_path: Path) -> None:
    made(tmp_path, 4)
    latest = (tmp_path / files.LATEST).read_text()
    made(tmp_path, 8)
    (tmp_path / files.LATEST).write_text(latest)
    (tmp_path / ".step-12.tmp").mkdir()
    files.tidy(tmp_path)
    assert (tmp_path / files.LATEST).read_text() == "step-8\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.LATEST, "step-4", "step-8"]


def test_a_damaged_checkpoint_never_costs_a_whole_one(tmp_path: Path) -> None:
    """It was passed over, and training stopped before its step: it must not count among those that are kept."""
    for step in (4, 8, 12):
        made(tmp_path, step)
    (tmp_path / "step-12" / files.weights_of(0)).write_bytes(b"")
    made(tmp_path, 10)
    files.keep_newest(tmp_path, 1, 0)
    assert names(tmp_path) == ["step-10"]
    assert (tmp_path / files.LATEST).read_text() == "step-10\n"


def test_an_interrupted_start_leaves_no_part_of_a_tokenizer(
    words, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = load_config(words()), RunFolder(tmp_path / "run")
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> None:
        if target == folder.tokenizer:
            raise KeyboardInterrupt
        replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.write(config, manifest)
    assert not folder.tokenizer.exists()
    folder.write(config, manifest)
    assert folder.tokenizer.read_bytes() == manifest.tokenizer_path.read_bytes()
