"""An exported folder in the Hugging Face format: weights, code, tokenizer, model card — written, verified, then put in place."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from llm.errors import CheckpointError, ConfigError, did_you_mean
from llm.export import assemble, native
from llm.export.card import model_card
from llm.export.configuration import BraidConfig
from llm.export.gguf_file import gguf_architecture, write_gguf
from llm.export.place import check_place
from llm.export.tokenizer_files import write_tokenizer
from llm.export.verify import PARTS, TOLERANCE, same_weights, verify, versions
from llm.export.weights import SHARD_BYTES, write_shards
from llm.init import cast_model, pinned
from llm.model import Decoder

ROOT = Path(__file__).resolve().parents[2]
METADATA = "training_metadata.json"
# The words that `to` takes beside the names of architectures.
AUTO, REMOTE = "auto", "remote"


@dataclass(frozen=True)
class ExportOptions:
    """How a folder is made.

    to: `remote`, which holds its own code; the name of an architecture of `transformers`; or `auto`, the first of these that can
    hold all of the model, and else `remote`. replace: an existing folder gives way. chat_template: a Jinja file. gguf: add a file
    for llama.cpp. dtype: of the weights, but for those that training keeps in float32. shard_bytes: of the largest file of weights.
    """

    to: str = AUTO
    replace: bool = False
    chat_template: Path | None = None
    gguf: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_bytes: int = SHARD_BYTES


def settle(to: str, model: Decoder) -> str:
    """`remote` or an architecture's name. Raises ConfigError when that architecture cannot hold all of the model."""
    if to == AUTO:
        return native.choose(model.config) or REMOTE
    if to != REMOTE and to not in native.ARCHITECTURES:
        raise ConfigError(f"--to ({to}) is unknown; {did_you_mean(to, [AUTO, REMOTE, *native.ARCHITECTURES])}")
    lost = [] if to == REMOTE else native.losses(to, model.config)
    if lost:
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ConfigError(
            f"--to {to} cannot hold this model without loss ({lost[0]}{more}); use --to remote, which holds every model"
        )
    return to


def export_folder(
    model: Decoder,
    tokenizer: Path,
    out: Path,
    metadata: dict[str, Any],
    context: int,
    options: ExportOptions = ExportOptions(),
    weights: Mapping[str, Tensor] | None = None,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Write `out` and return its training_metadata.json. The folder appears whole and verified, or not at all.

    Args:
        tokenizer: the run's tokenizer.json. metadata: where the model comes from. context: tokens of a training sequence.
        weights: read one by one where `model` is on the meta device; then weights are verified, not logits, which need all of them.
        root: the folder of the sources that the modeling file is assembled from.

    Raises:
        CheckpointError: `out` exists, or the reloaded model is not this one. DataError: the tokenizer does not fit the model.
        ConfigError: the architecture cannot hold the model.
    """
    target = settle(options.to, model)
    if options.dtype == "bfloat16" and target != REMOTE and not native.ARCHITECTURES[target].bfloat16:
        raise ConfigError(f"--dtype bfloat16: the code of {target} in transformers does not run in it; use --to remote, or float32")
    if options.gguf:
        gguf_architecture(model.config)
    _check_out(out, options.replace)
    if weights is None:
        model = model.float().cpu().eval()
        if options.dtype == "bfloat16":
            # what is compared is what is written
            cast_model(model)
            model.float()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (out.with_name(f".{out.name}.{os.getpid()}.{name}") for name in ("tmp", "old"))
    draft.mkdir()
    try:
        start = write_tokenizer(draft, tokenizer, model.config.vocab_size, context, options.chat_template)
        names = _write_model(draft, target, model, start, context, options.dtype, root)
        _write_weights(draft, names, model, weights or model.state_dict(), options)
        if options.gguf:
            write_gguf(draft / f"{out.name}.gguf", model, weights or model.state_dict(), draft, context)
        parity = _verified(draft, target, names, model, weights, options.dtype)
        oldest = "4.57" if target == REMOTE or native.needs(target, model.config) == 4 else "5"
        needs = f"transformers>={oldest}"
        made = {"format": target, "dtype": options.dtype, "needs": needs, "versions": versions(), "parity": parity}
        metadata = {**metadata, **made}
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


def _check_out(out: Path, replace: bool) -> None:
    """Raise CheckpointError unless a folder can be made at `out`."""
    if out.exists() and not replace:
        raise CheckpointError(f"{out} exists already; choose another folder, delete it, or pass --replace")
    if out.exists() and not is_export(out):
        raise CheckpointError(f"{out} is no exported model, so --replace does not delete it; choose another folder")
    check_place(out)


def is_export(folder: Path) -> bool:
    """Whether `folder` was written by `export_folder`, or is empty: then it may give way."""
    return folder.is_dir() and (not any(folder.iterdir()) or {"config.json", METADATA} <= {path.name for path in folder.iterdir()})


def _write_model(folder: Path, target: str, model: Decoder, start: int, context: int, dtype: str, root: Path) -> native.WeightNames:
    """config.json, generation_config.json and, where the model needs its own, the code. Returns the names of the weights."""
    ids: dict[str, Any] = {"bos_token_id": start, "eos_token_id": start, "pad_token_id": start}
    if target == REMOTE:
        (folder / "modeling_braid.py").write_text(assemble.modeling_source(root))
        (folder / "configuration_braid.py").write_text(assemble.configuration_source(root))
        causal = "modeling_braid.BraidForCausalLM"
        auto_map = {"AutoConfig": "configuration_braid.BraidConfig", "AutoModel": causal, "AutoModelForCausalLM": causal}
        config = BraidConfig(braid=asdict(model.config), architectures=["BraidForCausalLM"], auto_map=auto_map, dtype=dtype, **ids)
        config.save_pretrained(folder)
        names: native.WeightNames = [(f"model.{name}", (name,)) for name in model.state_dict()]
    else:
        architecture = native.ARCHITECTURES[target]
        head = {"model_type": target, "architectures": [architecture.causal], "dtype": dtype}
        values = {**head, **architecture.write(model.config, context), **ids, "transformers_version": transformers.__version__}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        names = native.pairs(target, model.config)
    transformers.GenerationConfig(**ids).save_pretrained(folder)
    return names


def _write_weights(
    folder: Path, names: native.WeightNames, model: Decoder, weights: Mapping[str, Tensor], options: ExportOptions
) -> None:
    kept = pinned(model) if options.dtype == "bfloat16" else set(model.state_dict())
    dtypes = {name: torch.float32 if name in kept else torch.bfloat16 for name in model.state_dict()}
    empty = {name: torch.empty(x.shape, dtype=dtypes[name], device="meta") for name, x in model.state_dict().items()}
    ours = dict(names)
    shapes = {theirs: native.joined(theirs, [empty[name] for name in parts]) for theirs, parts in names}
    write_shards(folder, shapes, lambda name: native.joined(name, [weights[part] for part in ours[name]]), options.shard_bytes)


def _verified(
    folder: Path, target: str, names: native.WeightNames, model: Decoder, weights: Mapping[str, Tensor] | None, dtype: str
) -> dict[str, Any]:
    if weights is not None:
        same_weights(folder, names, weights)
        return {"weights": "bit-identical to the checkpoint's; logits were not compared, as the model was not loaded as a whole"}
    parts = PARTS if target == REMOTE else native.ARCHITECTURES[target].parts()
    found = verify(model, folder, parts, dtype == "bfloat16")
    parity = {"tolerance": TOLERANCE, "largest_difference": {part: found.pop(part) for part in parts}}
    return parity | ({"bfloat16_error": found} if found else {})
