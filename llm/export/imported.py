"""Pretrained weights from a Hugging Face folder as weights, config and tokenizer that training here goes on from.

OUT/model.yaml           the `model` section, for `pretrain.py OUT/model.yaml EXPERIMENT.yaml init_from=OUT`
OUT/model*.safetensors   float32, by our names
OUT/tokenizer.json, chat_template.jinja and so on, as they came
OUT/imported.json        from where, what was checked
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoConfig

from llm.config import build
from llm.data.tokenizer import DOCUMENT_TOKEN, load_tokenizer, vocabulary_size
from llm.errors import CheckpointError, ConfigError, DataError, did_you_mean
from llm.export.native import ARCHITECTURES, model_config, pairs, parted
from llm.export.place import check_place
from llm.export.settings import Values
from llm.export.verify import verify, versions
from llm.export.weights import SHARD_BYTES, Shards, unpickled, write_shards
from llm.model import Decoder, ModelConfig, model_kinds

MODEL, ORIGIN = "model.yaml", "imported.json"
KEPT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
# Change(config, weights) -> the same of another model: `llm/export/hybrid.py` replaces layers so
Change = Callable[[ModelConfig, Mapping[str, Tensor]], tuple[ModelConfig, Mapping[str, Tensor]]]


class Translated(Mapping[str, Tensor]):
    """Their weights under our names, read when asked for. Settings of theirs that are factors of weights are multiplied in."""

    def __init__(self, model_type: str, config: ModelConfig, values: Values, theirs: Mapping[str, Tensor]):
        self.theirs = theirs
        with torch.device("meta"):
            self.shapes = {name: x.shape for name, x in Decoder(config).state_dict().items()}
        names = pairs(model_type, config)
        self.place = {name: (there, ours) for there, ours in names for name in ours}
        self.factors = ARCHITECTURES[model_type].factors(values)
        self._check({there for there, _ in names}, config)

    def _check(self, wanted: set[str], config: ModelConfig) -> None:
        """Raise CheckpointError unless the folder holds what its config says, and nothing more."""
        missing = sorted(wanted - set(self.theirs))
        # a tied head is often written a second time; positions are computed
        spare = {"lm_head.weight"} if config.tie_embeddings else set()
        extra = sorted(name for name in set(self.theirs) - wanted - spare if not name.endswith("rotary_emb.inv_freq"))
        if missing or extra:
            found = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which such a model has not"
            raise CheckpointError(f"the weights do not belong to their config.json (the folder {found}); fetch both again")

    def __getitem__(self, name: str) -> Tensor:
        there, ours = self.place[name]
        whole = self.theirs[there]
        shapes = [self.shapes[part] for part in ours]
        if whole.numel() != sum(shape.numel() for shape in shapes):
            raise CheckpointError(
                f"{there} {tuple(whole.shape)} does not have the shape that config.json gives it; fetch both again"
            )
        x = parted(whole, shapes)[ours.index(name)].float()
        factor = next((f for suffix, f in self.factors.items() if name == suffix or name.endswith("." + suffix)), 1.0)
        return x if factor == 1.0 else x * factor

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def read_settings(folder: Path) -> tuple[str, Values]:
    """(model_type, all settings of its class) from config.json. Raises ConfigError, CheckpointError."""
    try:
        values = json.loads((folder / "config.json").read_text())
        model_type = values["model_type"]
    except OSError:
        raise CheckpointError(f"{folder} has no config.json; name the folder of a model in Hugging Face format") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / 'config.json'} is damaged; fetch it again") from None
    if "auto_map" in values and model_type not in ARCHITECTURES:
        code = ", ".join(sorted({str(value).split(".")[0] + ".py" for value in values["auto_map"].values()}))
        raise ConfigError(f"model_type ({model_type}) brings code of its own ({code}), which is not run here; {known(model_type)}")
    if model_type not in ARCHITECTURES:
        raise ConfigError(f"model_type ({model_type}) cannot be imported; {known(model_type)}")
    try:
        return model_type, AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} is none of {model_type} ({' '.join(str(error).split())}); fetch it again"
        ) from None


def known(model_type: str) -> str:
    return did_you_mean(model_type, ARCHITECTURES)


def import_folder(
    folder: Path,
    out: Path,
    check_logits: bool = True,
    allow_pickle: bool = False,
    change: Change | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write `out` and return its imported.json. It appears whole and checked, or not at all.

    Args:
        check_logits: load both models and compare; it needs memory for both. change: of the model, on its way; checked before.

    Raises:
        ConfigError: an architecture or setting that no model here has. CheckpointError: damaged, or `out` is in the way.
        DataError: the tokenizer has ids that the model does not.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another folder or delete it")
    check_place(out)
    model_type, values = read_settings(folder)
    config = model_config(model_type, values)
    config.check()
    theirs = unpickled(folder) if allow_pickle and not any(folder.glob("*.safetensors")) else Shards(folder)
    weights: Mapping[str, Tensor] = Translated(model_type, config, values, theirs)
    origin: dict[str, Any] = {"folder": str(folder.resolve()), "model_type": model_type, "versions": versions()}
    origin["document_token"] = _document_token(folder, config)
    if check_logits:
        origin["parity"] = verify(loaded(config, weights), folder, ARCHITECTURES[model_type].parts())
    if change is not None:
        config, weights = change(config, weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    draft.mkdir()
    try:
        (draft / MODEL).write_text(OmegaConf.to_yaml(OmegaConf.create({"model": asdict(config)})))
        with torch.device("meta"):
            shapes = Decoder(config).state_dict()
        write_shards(draft, shapes, weights.__getitem__, shard_bytes)
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, draft / name)
        (draft / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return origin


def _document_token(folder: Path, config: ModelConfig) -> int | None:
    """The id of the token that opens documents here; None: the tokenizer has none. Raises DataError."""
    if not (folder / "tokenizer.json").is_file():
        raise DataError(f"{folder} has no tokenizer.json; save it there with AutoTokenizer.from_pretrained(...).save_pretrained")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    vocabulary = vocabulary_size(tokenizer)
    if vocabulary > config.vocab_size:
        raise DataError(
            f"{folder / 'tokenizer.json'} has {vocabulary} ids and the model {config.vocab_size}; take the tokenizer of this model"
        )
    start: int | None = tokenizer.token_to_id(DOCUMENT_TOKEN)
    return start


def loaded(config: ModelConfig, weights: Mapping[str, Tensor]) -> Decoder:
    """The decoder with these weights, in eval mode."""
    with torch.device("meta"):
        model = Decoder(config)
    model.load_state_dict({name: weights[name].float() for name in model.state_dict()}, assign=True)
    return model.requires_grad_(True).eval()


def read_imported(folder: Path) -> tuple[ModelConfig, Shards]:
    """(config, weights) of a folder that `import_folder` wrote. Raises CheckpointError."""
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"{folder} has no {MODEL}; name a folder that braid-import wrote")
    values = OmegaConf.to_container(OmegaConf.load(folder / MODEL))
    return build(ModelConfig, values["model"], model_kinds("")), Shards(folder)  # type: ignore[index,call-overload,arg-type]
