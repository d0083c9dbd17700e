"""A small file is there whole, as it was or as it is to be, whatever interrupts its writer."""

import os
from pathlib import Path

import pytest

from llm.whole_file import write_bytes, write_text


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_writer_that_fails_leaves_what_was_there(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest"
    write_text(path, "step-1: größer\n")
    assert path.read_bytes() == "step-1: größer\n".encode()

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"step-2")
    assert [file.name for file in tmp_path.iterdir()] == ["latest"]
    assert path.read_text() == "step-1: größer\n"
    monkeypatch.undo()
    write_bytes(path, b"step-2")
    assert path.read_bytes() == b"step-2"
