"""Logits of every kind of export, reloaded without Braid by one process: in full, by steps, in chunks and padded on the left;
and in bfloat16, as the folder itself asks for.

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
from llm.export.verify import PARTS, TOLERANCE, expectation
from llm.init import cast_model
from llm.mixers import MIXERS

RELOAD = exporter.ROOT / "llm/export/reload.py"
# runs the file named third, with the folder named second, if one is, first on the path
RUN = (
    "import runpy, sys; _, site, script, *sys.argv[1:] = sys.argv; sys.path[:0] = filter(None, [site]); "
    "runpy.run_path(script, {}, '__main__')"
)
CASES = {name: ("remote", layers, {}) for name, layers in patterns.REMOTE.items()}
ALONE = list(MIXERS)
CASES |= {f"to_{name}": (name, *case) for name, case in patterns.NATIVE.items()}

BRAIDED = [name for name in CASES if name not in ALONE]
# in bfloat16 too
LOW_FEW = ["five_families", "to_llama", "to_mamba2"]
LOW_REST = [name for name in BRAIDED if name not in (*LOW_FEW, "to_xlstm")]


def major() -> int:
    """Of the transformers that reload."""
    site = os.environ.get("HF_SITE")
    found = next(metadata.distributions(name="transformers", path=[site] if site else sys.path))
    return int(found.version.split(".")[0])


def differences(cases, low, tokenizer, scratch) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Case -> the largest difference of each part, and its bound. low: cases exported in bfloat16."""
    paths, bounds, site = [], {}, os.environ.get("HF_SITE", "")
    for name in cases:
        to, layers, settings = CASES[name]
        model = patterns.model(layers, **settings).eval()
        options = exporter.ExportOptions(to, dtype="bfloat16" if name in low else "float32")
        if name in low:
            cast_model(model)
            model.float()
        out, file = scratch / name, scratch / f"{name}.safetensors"
        exporter.export_folder(model, tokenizer, out, {}, 64, options, weights=model.state_dict())
        expected, bounds[name] = expectation(model, PARTS if to == "remote" else ARCHITECTURES[to].parts(), name in low)
        save_file(expected, file)
        paths += [str(out), str(file)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(scratch), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-I", "-c", RUN, site, str(RELOAD), *paths]
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print("\n".join(f"{name}: {line}, at most {bounds[name]}" for name, line in zip(cases, lines, strict=True)))
    return {name: (line, bounds[name]) for name, line in zip(cases, lines, strict=True)}


@pytest.mark.multirank
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("cases", "low"),
    [(BRAIDED, LOW_FEW), *(pytest.param(cases, cases, marks=pytest.mark.slow) for cases in (ALONE, LOW_REST))],
    ids=["braided", "alone", "bfloat16"],
)
def test_reloaded_logits_are_ours(cases, low, tokenizer, tmp_path):
    cases = [name for name in cases if CASES[name][0] == "remote" or ARCHITECTURES[CASES[name][0]].needs <= major()]
    found = differences(cases, low, tokenizer, tmp_path)
    for name, (largest, bounds) in found.items():
        assert set(largest) == set(bounds)
        assert all(difference <= bounds[part] for part, difference in largest.items()), (name, largest, bounds)
        assert max(largest[part] for part in largest if part in PARTS) <= TOLERANCE, (name, largest)
