"""Any causal language model of a local Hugging Face folder as a `LanguageModel`; our own exports become our own decoder again.

Continuing from a cache with several tokens at once is exact for attention only: the recurrent layers of transformers 5.23 leave out
the incoming state or the convolution's tail there (Mamba, Jamba), while full passes and single steps agree. So whatever is not a
plain cache of keys and values goes on token by token.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.utils import logging

from eval.models.braid import BraidModel
from eval.models.language_model import LanguageModel
from eval.models.metadata import metadata
from llm.errors import CheckpointError, DataError
from llm.export.configuration import BraidConfig
from llm.export.modeling import BraidForCausalLM

CONFIG = "config.json"
CACHES = ("past_key_values", "cache_params", "cache")


class HuggingFaceModel:
    """A model of transformers and its tokenizer."""

    packs = False

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.vocab_size: int = model.config.vocab_size
        self.positions = self.window = getattr(model.config, "max_position_embeddings", None)
        known = inspect.signature(model.forward).parameters
        self._cache = next((name for name in CACHES if name in known), CACHES[0])
        self._keeps = "logits_to_keep" in known
        # as lm-evaluation-harness opens a text
        opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if opening is None or max(tokenizer.get_vocab().values()) >= self.vocab_size:
            raise DataError(
                f"the tokenizer of {model.name_or_path} ({len(tokenizer)} ids, opening token {opening}) does not fit a model of "
                f"{self.vocab_size} ids; put the model's own tokenizer there, with a bos_token or eos_token"
            )
        self.opening: int = opening

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def logits(
        self, tokens_BT: Tensor, state: Any = None, starts_BT: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, Any]:
        assert starts_BT is None, "documents do not share rows here"
        tokens_BT = tokens_BT.to(self.device)
        if state is None or tokens_BT.shape[1] == 1 or _of_attention(state):
            return self._forward(tokens_BT, state, last_only)
        found = []
        for token_B in tokens_BT.unbind(1):
            logits, state = self._forward(token_B[:, None], state, False)
            found = [logits] if last_only else [*found, logits]
        return torch.cat(found, 1), state

    def _forward(self, tokens_BT: Tensor, state: Any, last_only: bool) -> tuple[Tensor, Any]:
        keep = {"logits_to_keep": 1} if last_only and self._keeps else {}
        out = self.model(tokens_BT, use_cache=True, **{self._cache: state}, **keep)
        return out.logits[:, -1:] if last_only else out.logits, out[self._cache]

    def narrow(self, state: Any, rows: int) -> Any:
        return state

    def state_bytes(self, state: Any) -> int:
        return sum(x.numel() * x.element_size() for x in _tensors(state, set()))

    def predicted_state_bytes(self, context: int) -> None:
        return None

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _of_attention(cache: Any) -> bool:
    layers = getattr(cache, "layers", None) or [None]
    return all(isinstance(x, DynamicLayer) and not isinstance(x, LinearAttentionCacheLayerMixin) for x in layers)


def _tensors(held: Any, seen: set[int]) -> list[Tensor]:
    """All tensors that an object's attributes, lists and dicts lead to, each once."""
    if id(held) in seen:
        return []
    seen.add(id(held))
    if isinstance(held, Tensor):
        return [held]
    inner = held if isinstance(held, list | tuple | dict) else getattr(held, "__dict__", ())
    return [x for value in (inner.values() if isinstance(inner, dict) else inner) for x in _tensors(value, seen)]


def load_folder(folder: Path, device: torch.device | str, dtype: torch.dtype, trust: bool) -> LanguageModel:
    """The model of an exported folder. trust: run model code that lies in it (not needed for our own exports).

    Raises:
        CheckpointError: a folder that transformers cannot load. DataError: a tokenizer that is missing or does not fit.
    """
    logging.disable_progress_bar()
    try:
        if json.loads((folder / CONFIG).read_text()).get("model_type") == BraidConfig.model_type:
            ours = _whole(BraidForCausalLM, folder, dtype=dtype)
            return BraidModel(ours.model.to(device), folder / "tokenizer.json", trained_window(folder))
        model = _whole(AutoModelForCausalLM, folder, dtype=dtype, trust_remote_code=trust).to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} does not load as a causal language model ({first[:300]}); give a whole exported folder, and "
            "--trust-remote-code if its own code may run"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())
        raise DataError(f"{folder} holds no tokenizer ({first[:200]}); save the model's own tokenizer there") from None
    # texts are cut here, by rule, and not there
    tokenizer.model_max_length = sys.maxsize
    return HuggingFaceModel(model, tokenizer)


def _whole(kind: Any, folder: Path, **settings: Any) -> Any:
    """A model of the folder's weights; transformers would fill what is missing with random ones. Raises CheckpointError."""
    model, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    missing = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if missing:
        raise CheckpointError(f"{folder} lacks weights of its model ({', '.join(missing[:3])}); export it again or copy it whole")
    return model.eval()


def trained_window(folder: Path) -> int | None:
    return metadata(folder).get("config", {}).get("data", {}).get("sequence_length")
