"""Runs and exported folders of small models, written without training."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from llm.config import to_yaml
from llm.export import folder as exporter
from llm.model import Decoder, ModelConfig
from llm.train import checkpoint_files as files
from llm.train.config import RunConfig, build_config

STEPS, BATCH, WINDOW = 3, 2, 16


def small_config(model: ModelConfig) -> RunConfig:
    return build_config(
        {
            "name": "small",
            "model": asdict(model),
            "data": {"manifest": "data", "sequence_length": WINDOW},
            "train": {"steps": STEPS, "batch": BATCH},
        }
    )


def write_run(run: Path, config: RunConfig, tokenizer: bytes) -> Path:
    """A run folder with one checkpoint of an untrained model."""
    checkpoint = run / "checkpoints" / files.name_of(STEPS)
    (checkpoint / files.WEIGHTS).mkdir(parents=True)
    (run / files.CONFIG).write_text(to_yaml(config))
    (checkpoint / files.CONFIG).write_text(to_yaml(config))
    (checkpoint / files.TOKENIZER).write_bytes(tokenizer)
    progress = {"step": STEPS, "tokens": STEPS * BATCH * WINDOW, "data": {"consumed": STEPS * BATCH}}
    (checkpoint / files.PROGRESS).write_text(json.dumps(progress))
    save_file(dict(Decoder.create(config.model, seed=0).state_dict()), checkpoint / files.weights_of(0))
    names = [files.CONFIG, files.TOKENIZER, files.PROGRESS, files.weights_of(0)]
    (checkpoint / files.FILES).write_text(json.dumps(files.seal(checkpoint, names)))
    return run


def export(model: Decoder, tokenizer: Path, out: Path, context: int) -> Path:
    """An exported folder of a copy of the model; that exports are right is tested elsewhere."""
    right = exporter.verify
    exporter.verify = lambda model, folder, parts, low: dict.fromkeys(parts, 0.0)
    try:
        copy = Decoder.create(model.config, seed=0)
        copy.load_state_dict(model.state_dict())
        exporter.export_folder(copy, tokenizer, out, {"config": {"data": {"sequence_length": context}}}, context)
    finally:
        exporter.verify = right
    return out
