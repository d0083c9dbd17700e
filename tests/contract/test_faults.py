"""The suite catches planted bugs; and the README's way to add a mixer yields one that keeps every law."""

import importlib.util
import re
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from cases import pytorch_forms, small
from faults import FAULTS
from laws import LAWS

from llm.config import build
from llm.mixers import MIXERS
from llm.model import Decoder, ModelConfig, model_kinds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def short_conv(tmp_path_factory):
    """The mixer of the README's section "Add a mixer": its one file, and its one line in the table."""
    section = (ROOT / "README.md").read_text().split("## Add a mixer")[1].split("\n## ")[0]
    file, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    path = tmp_path_factory.mktemp("mixer") / "short_conv.py"
    path.write_text(file)
    spec = importlib.util.spec_from_file_location("short_conv", path)
    module = sys.modules["short_conv"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entry = eval("{" + line + "}", vars(module))
    with patch.dict(MIXERS, entry):
        yield


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_readme_mixer_keeps_law(law):
    law(small("short_conv"))


def test_readme_mixer_builds_from_yaml():
    layers = {"s": {"mixer": {"kind": "short_conv", "taps": 3}}, "a": {"mixer": {"kind": "attention", "heads": 2}}}
    values = {"width": 8, "depth": 3, "vocab_size": 11, "layers": layers, "pattern": ["s", "a"]}
    model = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0)
    assert [block.mixer.config.kind for block in model.blocks] == ["short_conv", "attention", "short_conv"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_caught(fault):
    kind, name = FAULTS[fault]
    law = next(law for law in LAWS if law.__name__ == name)
    law(small(kind))
    with pytorch_forms(), fault(), pytest.raises(AssertionError):
        law(small(kind))
