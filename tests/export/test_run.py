"""From a pretrained folder to a run here, and back: the whole way of somebody who trains on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import patterns
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from launch import export_hf, import_hf
from llm.data import Manifest
from llm.testing import run_ranks
from llm.train.load import load_model
from llm.train.start import pretrain
from tests.train.conftest import VOCABULARY, manifest  # noqa: F401

RUN = [
    "name=continued",
    "data.sequence_length=32",
    "train.steps=10",
    "train.batch=8",
    "train.optimizer.lr=0.01",
    "train.schedule.warmup=2",
    "train.log_every=1",
    "train.peak_flops=1e9",
    "train.tensorboard=false",
    "train.precision=fp32",
]


def start(rank: int, words: list[str]) -> None:
    pretrain(words)


def their_folder(model_type: str, manifest: Manifest, folder: Path) -> Path:  # noqa: F811
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    attention = {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    mamba = {"mamba_n_heads": 4, "mamba_d_state": 16, "attn_layer_indices": [1]}
    settings = {"llama": {**sizes, **attention}, "bamba": {**sizes, **attention, **mamba}}[model_type]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[model_type](**settings)).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(manifest.tokenizer_path.read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(600)
@pytest.mark.parametrize("model_type", ["llama", "bamba"])
def test_a_pretrained_model_trains_on_and_goes_back(model_type, manifest, tmp_path, capsys):  # noqa: F811
    source, out = their_folder(model_type, manifest, tmp_path / "theirs"), tmp_path / "in"
    assert import_hf.main([str(source), str(out)]) == 0
    assert "logits differ by at most" in capsys.readouterr().out
    words = [str(out / "model.yaml"), *RUN, f"init_from={out}", f"data.manifest={manifest.root}", f"runs={tmp_path}"]
    run_ranks(start, 1, words, timeout=200)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "continued/metrics.jsonl").read_text().splitlines() if "loss" in line
    ]
    assert losses[-1] < losses[0]

    options = ["--to", model_type, "--licence", "apache-2.0"]
    assert export_hf.main([str(tmp_path / "continued"), str(tmp_path / "back"), *options]) == 0
    said = capsys.readouterr().out
    assert f"as native {model_type}, verified in transformers {transformers.__version__}" in said
    ours, _, _ = load_model(tmp_path / "continued")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    tokens = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=0, atol=1e-5)
    card = (tmp_path / "back/README.md").read_text()
    for words_of_card in ("license: apache-2.0", "Step 10, 2,560 tokens seen", "CC0-1.0", manifest.hash, "braid-pretrain"):
        assert words_of_card in card
    assert export_hf.main([str(tmp_path / "continued"), str(tmp_path / "streamed"), *options, "--stream"]) == 0
    assert (tmp_path / "streamed/model.safetensors").read_bytes() == (tmp_path / "back/model.safetensors").read_bytes()


TASK = """
task: braid_words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [" eggs", " spam"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["remote", "llama"])
def test_lm_eval_runs_on_the_folder_offline(kind, tokenizer, tmp_path):
    from llm.export import folder as exporter

    layers = patterns.REMOTE["five_families"] if kind == "remote" else patterns.NATIVE["llama"][0]
    model = patterns.model(layers)
    exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, exporter.ExportOptions(kind), weights=model.state_dict())
    (tmp_path / "tasks").mkdir()
    documents = "\n".join(json.dumps({"text": f"def spam(eggs): return{' eggs' * n}"}) for n in range(5))
    (tmp_path / "documents.jsonl").write_text(documents + "\n")
    (tmp_path / "tasks/words.yaml").write_text(TASK.replace("FILE", str(tmp_path / "documents.jsonl")))
    trust = ",trust_remote_code=True" if kind == "remote" else ""
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={tmp_path / 'out'},dtype=float32{trust}",
    ]
    command += ["--tasks", "braid_words", "--include_path", str(tmp_path / "tasks"), "--device", "cpu", "--batch_size", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|braid_words|" in done.stdout.replace(" ", "")


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(1200)
def test_what_streaming_holds_in_memory():
    script = Path(__file__).resolve().parents[2] / "benchmarks/hf_streaming.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
