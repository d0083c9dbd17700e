"""An exported folder in the Hugging Face format: weights, code, tokenizer, model card — written, verified, then put in place."""

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import tokenizers
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from tokenizers.processors import TemplateProcessing

from llm.data import DOCUMENT_TOKEN, load_tokenizer
from llm.errors import CheckpointError, DataError
from llm.export import assemble
from llm.export.card import model_card
from llm.export.configuration import BraidConfig
from llm.export.verify import verify
from llm.model import Decoder

ROOT = Path(__file__).resolve().parents[2]
METADATA = "training_metadata.json"


def export_folder(
    model: Decoder, tokenizer: Path, out: Path, metadata: dict[str, Any], context: int, replace: bool = False, root: Path = ROOT
) -> dict[str, Any]:
    """Write `out` and return its training_metadata.json. The folder appears whole and verified, or not at all.

    Args:
        tokenizer: the run's tokenizer.json. metadata: where the model comes from. context: tokens of a training sequence.
        replace: an existing `out` gives way. root: the folder of the sources that the modeling file is assembled from.

    Raises:
        CheckpointError: `out` exists, or the reloaded model is not this one. DataError: the tokenizer does not fit the model.
    """
    if out.exists() and not replace:
        raise CheckpointError(f"{out} exists already; choose another folder, delete it, or pass --replace")
    if out.exists() and not is_export(out):
        raise CheckpointError(f"{out} is no exported model, so --replace does not delete it; choose another folder")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        law = "is not writable" if there.is_dir() else "is a file"
        raise CheckpointError(f"{out} cannot be made: {there} {law}; choose another folder")
    model = model.float().cpu().eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (out.with_name(f".{out.name}.{os.getpid()}.{name}") for name in ("tmp", "old"))
    draft.mkdir()
    try:
        start = _write_tokenizer(draft, tokenizer, model.config.vocab_size, context)
        _write_code(draft, root)
        _write_config(draft, model, start)
        save_torch_state_dict({f"model.{name}": x for name, x in model.state_dict().items()}, draft, max_shard_size="5GB")
        for weights in draft.glob("*.safetensors"):
            # written for the owner alone; the rest of the folder follows the umask
            weights.chmod((draft / "config.json").stat().st_mode)
        metadata = {**metadata, "versions": versions(), "parity": {"tolerance": 1e-5, "largest_difference": verify(model, draft)}}
        (draft / METADATA).write_text(json.dumps(metadata, indent=2, default=str) + "\n")
        (draft / "README.md").write_text(model_card(out.name, model, metadata))
        # the old folder steps aside before the new one takes its name, so that a kill in between loses neither
        if out.exists():
            out.rename(old)
        draft.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return metadata


def is_export(folder: Path) -> bool:
    """Whether `folder` was written by `export_folder`, or is empty: then it may give way."""
    return folder.is_dir() and (not any(folder.iterdir()) or {"config.json", METADATA} <= {path.name for path in folder.iterdir()})


def versions() -> dict[str, str]:
    """What the export was made with."""
    libraries = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers, safetensors)}
    return {"python": platform.python_version(), **libraries}


def _write_code(folder: Path, root: Path) -> None:
    (folder / "modeling_braid.py").write_text(assemble.modeling_source(root))
    (folder / "configuration_braid.py").write_text(assemble.configuration_source(root))


def _write_config(folder: Path, model: Decoder, start: int) -> None:
    causal = "modeling_braid.BraidForCausalLM"
    ids: dict[str, Any] = {"bos_token_id": start, "eos_token_id": start, "pad_token_id": start}
    config = BraidConfig(
        braid=asdict(model.config),
        architectures=["BraidForCausalLM"],
        auto_map={"AutoConfig": "configuration_braid.BraidConfig", "AutoModel": causal, "AutoModelForCausalLM": causal},
        dtype="float32",
        **ids,
    )
    config.save_pretrained(folder)
    transformers.GenerationConfig(**ids).save_pretrained(folder)


def _write_tokenizer(folder: Path, path: Path, vocab_size: int, context: int) -> int:
    """tokenizer.json, which opens every text with the document token, and its config. Returns that token's id."""
    tokenizer = load_tokenizer(path)
    start = tokenizer.token_to_id(DOCUMENT_TOKEN)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if start is None or largest >= vocab_size:
        raise DataError(
            f"tokenizer {path} (ids to {largest}, {DOCUMENT_TOKEN}: {start}) does not fit a model of {vocab_size} ids; "
            "use the tokenizer.json of the model's own run"
        )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{DOCUMENT_TOKEN} $A", pair=f"{DOCUMENT_TOKEN} $A $B:1", special_tokens=[(DOCUMENT_TOKEN, start)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), DOCUMENT_TOKEN)
    config = {
        # 5.x would write a class of its own, which 4.57 cannot load
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "padding_side": "left",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "vocabulary": largest + 1,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return start
