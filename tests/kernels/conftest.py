"""Real Triton kernels on CPU tensors: collected by `make test-kernels` alone, whose environment has the packages."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.kernels import interpreter

    interpreter.install()

    @pytest.fixture(autouse=True)
    def gpu():
        with interpreter.device():
            yield
