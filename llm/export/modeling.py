"""Braid in `transformers`: the decoder behind the interface of a causal language model, and its state as a cache.

A row's document starts at its first real token (attention_mask), so padding on the left never touches it. Positions are counted
inside the document by the model itself: `position_ids` and `cache_position` are accepted and have no effect.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm.block import LayerConfig
from llm.docs import Docs
from llm.export.configuration import BraidConfig
from llm.init import ROLES, parameter_roles, pinned
from llm.layers import LAYERS
from llm.mixers import MIXERS
from llm.mixers.mamba2 import Mamba2Config
from llm.model import Decoder, ModelConfig
from llm.ops.cross_entropy import IGNORED, cross_entropy_per_token
from llm.ops.rotary import RopeScaling
from llm.state import State

# renamed in transformers 5.24, which keeps the old name for callers of `forward`, but not for its own `generate`
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def model_config(values: dict[str, Any]) -> ModelConfig:
    """The decoder's config from plain keys and values."""
    layers = {}
    for name, layer in values["layers"].items():
        mixer = dict(layer["mixer"])
        for key, config in (("rope_scaling", RopeScaling), ("recurrent", Mamba2Config)):
            if mixer.get(key) is not None:
                mixer[key] = config(**mixer[key])
        layers[name] = LayerConfig(MIXERS[mixer["kind"]][0](**mixer), LAYERS[layer["ffn"]["kind"]][0](**layer["ffn"]))
    return ModelConfig(**{**values, "layers": layers})


class BraidStateLayer(CacheLayerMixin):
    """The state of all layers, as the decoder hands it on: tensors with the batch first.

    seen: tokens so far, padding included. interrupted: padding came after a row's first token, so the state cannot be continued.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.state: State | None = None
        self.seen = 0
        self.interrupted = False

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a braid cache is filled by the model itself")

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a braid cache is filled by the model itself")

    def get_seq_length(self, *args: Any) -> int:
        return self.seen

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        return self.seen + (query if isinstance(query, int) else query.shape[0]), 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def crop(self, *args: Any) -> None:
        raise NotImplementedError("a recurrent state cannot forget its last tokens; run the shorter prompt again")

    def offload(self) -> None:
        raise NotImplementedError("a braid cache stays on the model's device")

    prefetch = offload

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = {name: x[indices.to(x.device)] for name, x in self.state.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            self.state = {name: x.repeat_interleave(repeats, 0) for name, x in self.state.items()}


class BraidCache(Cache):
    """One layer stands for all: the decoder takes and returns one state."""

    def __init__(self) -> None:
        self.past = BraidStateLayer()
        super().__init__(layers=[self.past])


class BraidForCausalLM(GenerationMixin, PreTrainedModel):
    config_class = BraidConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The state cannot be rolled back, which assisted decoding needs.
    _is_stateful = True

    def __init__(self, config: BraidConfig):
        super().__init__(config)
        self.model = Decoder(model_config(config.braid))
        self.gradient_checkpointing = False
        self._no_split_modules = ["Block"]
        self.post_init()
        # Decays, norms and biases stay float32 whatever dtype is asked for. Behind `post_init`, which in 4.57 takes no whole names.
        self._keep_in_fp32_modules_strict = {f"model.{name}" for name in pinned(self.model)}

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        roles = parameter_roles(self.model)
        for parameter in module.parameters(recurse=False):
            if parameter in names and not getattr(parameter, "_is_hf_initialized", False):
                generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
                start = ROLES[roles[names[parameter]]].start
                parameter.copy_(start(parameter, generator, self.model.config.depth))

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # The decoder's own, never re-entrant: with a state that is a dict, re-entrant gradients are silently wrong.
        self.gradient_checkpointing = self.model.checkpoint_activations = enable

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embedding as a module: a view, whose weight is the model's own parameter."""
        view = torch.nn.Embedding(0, 0, device="meta")
        view.num_embeddings, view.embedding_dim = self.model.embedding.shape
        view.weight = self.model.embedding
        return view

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.model.embedding = value.weight
        self.config.braid["vocab_size"] = self.config.vocab_size = len(self.model.embedding)

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """The head as a module, likewise; None where the embedding is the head."""
        if self.model.head is None:
            return None
        view = torch.nn.Linear(0, 0, bias=False, device="meta")
        view.out_features, view.in_features = self.model.head.shape
        view.weight = self.model.head
        return view

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.model.head = value.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, and with `labels` (not shifted; -100 is not scored) the loss: nats per label, or sum / num_items_in_batch.

        cache and past_key_values are one argument: the newer and the older name of transformers.
        hidden_states: the embedded tokens and each layer's output, the last one normed, as the head reads it.
        """
        if inputs_embeds is None and input_ids is not None:
            x = torch.nn.functional.embedding(input_ids, self.model.embedding)
        elif inputs_embeds is not None and input_ids is None:
            x = inputs_embeds
        else:
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions: a recurrent layer has no attention map; leave it out")
        unknown = [name for name, value in kwargs.items() if isinstance(value, Cache)]
        if unknown:
            raise ValueError(f"{unknown[0]}: this model knows its cache as {CACHE}; export it anew for this transformers")
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, BraidCache):
            raise ValueError(f"{CACHE} ({type(cache).__name__}) must be a BraidCache, which the model makes itself")
        keep = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = BraidCache() if cache is None and keep else cache
        past = None if cache is None else cache.past
        docs = self._docs(attention_mask, x.shape[1], past)
        shown = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers: list[Tensor] | None = [] if shown else None
        x, state = self.model.hidden(x, None if past is None else past.state, docs, kept=layers)
        if past is not None:
            past.state, past.seen, past.is_initialized = state, past.seen + x.shape[1], True
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(x if labels is not None else x[:, rows])
        loss = None if labels is None else self._loss(logits, labels, attention_mask, num_items_in_batch)
        kept: dict[str, Any] = {CACHE: cache if keep else None}
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits if labels is None else logits[:, rows],
            hidden_states=None if layers is None else (*layers, x),
            **kept,
        )
        plain = not getattr(self.config, "return_dict", True) if return_dict is None else not return_dict
        return result.to_tuple() if plain else result

    def _docs(self, attention_mask: Tensor | None, tokens: int, past: BraidStateLayer | None) -> Docs | None:
        """Starts at each row's first real token; None where nothing starts but the batch itself."""
        seen = 0 if past is None else past.seen
        if past is not None and past.interrupted:
            raise ValueError("this cache saw padding after a row's first token and cannot be continued; pad on the left")
        if attention_mask is None or (seen and tokens == 1):
            return None
        if attention_mask.ndim != 2 or attention_mask.shape[1] != seen + tokens:
            raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must be [batch, {seen + tokens}]: one per token so far")
        real = attention_mask.bool()
        if bool(real.all()):
            return None
        count = real.cumsum(1)
        if past is not None:
            past.interrupted = bool((~real & (count > 0)).any())
        return Docs((real & (count == 1))[:, -tokens:])

    def _loss(self, logits: Tensor, labels: Tensor, attention_mask: Tensor | None, items: Tensor | int | None) -> Tensor:
        target = labels[:, 1:]
        if attention_mask is not None:
            # Padding predicts nothing.
            target = target.masked_fill(attention_mask[:, -labels.shape[1] :][:, :-1] == 0, IGNORED)
        total = cross_entropy_per_token(logits[:, :-1], target).sum()
        return total / ((target != IGNORED).sum() if items is None else items)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation ({generation_config.cache_implementation}) does not fit a recurrent state; leave it out"
            )
        if generation_config.use_cache and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = BraidCache()
