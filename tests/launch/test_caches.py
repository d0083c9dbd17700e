"""Caches of kernels go to a folder that nobody else can put code into."""

from pathlib import Path

import pytest

from launch.caches import CACHES, use_node_cache


def test_caches_lie_in_the_nodes_folder_unless_said_otherwise(tmp_path: Path):
    environment = {"BRAID_NODE_CACHE": str(tmp_path / "own"), "TRITON_CACHE_DIR": "/elsewhere"}
    use_node_cache(environment)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    assert environment["TRITON_CACHE_DIR"] == "/elsewhere"
    assert environment["BRAID_OPS_CACHE"] == str(tmp_path / "own" / "ops")
    assert set(CACHES) <= set(environment)


def test_nothing_is_changed_without_the_variable():
    environment: dict[str, str] = {}
    use_node_cache(environment)
    assert environment == {}


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture):
    tmp_path.chmod(0o777)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path, tmp_path / "link", tmp_path / "file"):
        environment = {"BRAID_NODE_CACHE": str(place)}
        use_node_cache(environment)
        assert list(environment) == ["BRAID_NODE_CACHE"]
    assert "must be yours, and writable for nobody else" in capsys.readouterr().err
