"""Logits of every kind of export, reloaded without Braid by one process: in full, by steps, in chunks and padded on the left.

With HF_SITE=FOLDER, by the transformers in that folder (`make test-hf-matrix`). `-s` shows what was found.
"""

import json
import os
import subprocess
import sys
from importlib import metadata

import patterns
import pytest
from safetensors.torch import save_file

from llm.export import folder as exporter
from llm.export.native import ARCHITECTURES
from llm.export.verify import PARTS, TOLERANCE, expected_logits
from llm.mixers import MIXERS

RELOAD = exporter.ROOT / "llm/export/reload.py"
# runs the file named third, with the folder named second first on the path
RUN = (
    "import runpy, sys; _, site, script, *sys.argv[1:] = sys.argv; sys.path.insert(0, site); runpy.run_path(script, {}, '__main__')"
)
CASES = {name: ("remote", layers, {}) for name, layers in patterns.REMOTE.items()}
ALONE = list(MIXERS)
CASES |= {f"to_{name}": (name, *case) for name, case in patterns.NATIVE.items()}

BRAIDED = [name for name in CASES if name not in ALONE]


def major() -> int:
    """Of the transformers that reload."""
    site = os.environ.get("HF_SITE")
    found = next(metadata.distributions(name="transformers", path=[site] if site else sys.path))
    return int(found.version.split(".")[0])


def differences(cases, tokenizer, scratch) -> dict[str, dict[str, float]]:
    """Case -> the largest difference of each part."""
    paths, site = [], os.environ.get("HF_SITE", "")
    for name in cases:
        to, layers, settings = CASES[name]
        model = patterns.model(layers, **settings).eval()
        out, expected = scratch / name, scratch / f"{name}.safetensors"
        exporter.export_folder(model, tokenizer, out, {}, 64, exporter.ExportOptions(to), weights=model.state_dict())
        save_file(expected_logits(model, PARTS if to == "remote" else ARCHITECTURES[to].parts()), expected)
        paths += [str(out), str(expected)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(scratch), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-I", "-c", RUN, site or sys.path[-1], str(RELOAD), *paths]
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print("\n".join(f"{name}: {line}" for name, line in zip(cases, lines, strict=True)))
    return dict(zip(cases, lines, strict=True))


@pytest.mark.multirank
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cases", [BRAIDED, pytest.param(ALONE, marks=pytest.mark.slow)], ids=["braided", "alone"])
def test_reloaded_logits_are_ours(cases, tokenizer, tmp_path):
    cases = [name for name in cases if CASES[name][0] == "remote" or ARCHITECTURES[CASES[name][0]].needs <= major()]
    found = differences(cases, tokenizer, tmp_path)
    wrong = {name: largest for name, largest in found.items() if not max(largest.values()) <= TOLERANCE}
    assert not wrong
    for name, largest in found.items():
        assert set(largest) == set(PARTS if CASES[name][0] == "remote" else ARCHITECTURES[CASES[name][0]].parts())
