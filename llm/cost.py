"""What a model costs, from its config alone: parameters, forward FLOPs per token, bytes of state per sequence.

A multiply-add is two FLOPs; norms, activations and rotations are not counted; a training step takes three forwards' worth of what
learns, and one of what teaches it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LINEAR_CHUNK = 64
ATTENTION_TILE = 256
POSITION_BYTES = 8
BACKWARD_AND_FORWARD = 3


@dataclass(frozen=True)
class Cost:
    parameters: int = 0
    flops: float = 0.0
    state_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops, self.state_bytes + other.state_bytes)


def projection(width_in: int, width_out: int) -> Cost:
    """A matrix applied to every token."""
    return Cost(parameters=width_in * width_out, flops=2.0 * width_in * width_out)


def block_projection(width: int, block: int) -> Cost:
    """A block-diagonal matrix applied to every token; zeros with which small blocks are joined are no work of the model's."""
    return Cost(parameters=width * block, flops=2.0 * width * block)


def vector(size: int) -> Cost:
    """Weights and biases applied elementwise."""
    return Cost(parameters=size)


def conv(width: int, taps: int) -> Cost:
    """A depthwise convolution without bias."""
    return Cost(parameters=width * taps, flops=2.0 * width * taps)


def conv_tail(width: int, taps: int, bytes_per_value: int) -> Cost:
    """The last inputs that a convolution keeps."""
    return Cost(state_bytes=width * (taps - 1) * bytes_per_value)


def attention(heads: int, key: int, value: int, context: int, window: int | None) -> Cost:
    """Scores and weighted sum over the visible keys, averaged over the positions of a context."""
    W = min(window or context, context)
    visible = (W * (W + 1) / 2 + (context - W) * W) / context
    return Cost(flops=2.0 * heads * (key + value) * visible)


def capped_attention(heads: int, key: int, value: int, context: int, window: int | None) -> Cost:
    """With a soft cap: all pairs of each block of queries and the keys in its reach, also those that the mask leaves out."""
    pairs = 0
    for start in range(0, context, ATTENTION_TILE):
        stop = min(start + ATTENTION_TILE, context)
        pairs += (stop - start) * (stop - max(0, start - (window or context) + 1))
    return Cost(flops=2.0 * heads * (key + value) * pairs / context)


def attention_cache(kv_heads: int, key: int, value: int, context: int, window: int | None, bytes_per_value: int) -> Cost:
    """Keys, values and one byte of validity per slot after `context` tokens."""
    slots = context if window is None else window - 1
    return Cost(state_bytes=slots * (kv_heads * (key + value) * bytes_per_value + 1))


def linear(heads: int, key: int, value: int, groups: int | None = None) -> Cost:
    """The chunked form: scores (once per group) and outputs inside a chunk, state read and update between chunks."""
    return Cost(flops=2.0 * ((groups or heads) * LINEAR_CHUNK * key + heads * (LINEAR_CHUNK * value + 2 * key * value)))


def linear_state_bytes(heads: int, key: int, value: int) -> Cost:
    """The float32 matrices of the family `linear`."""
    return Cost(state_bytes=4 * heads * key * value)


def scan(channels: int, states: int) -> Cost:
    """Reading the state, the one product of the selective scan; its elementwise work is not counted."""
    return Cost(flops=2.0 * channels * states)


def scan_state_bytes(channels: int, states: int) -> Cost:
    """The float32 states of the family `scan`."""
    return Cost(state_bytes=4 * channels * states)


def recurrent(heads: int, channels: int, gates: int) -> Cost:
    """The recurrent matrices, block-diagonal over heads."""
    size = heads * gates * channels * channels
    return Cost(parameters=size, flops=2.0 * size)


def recurrent_state_bytes(width: int, states: int) -> Cost:
    """The float32 states of the family `recurrent`."""
    return Cost(state_bytes=4 * width * states)


def mlstm(heads: int, key: int, value: int) -> Cost:
    """The family `linear` with the normaliser as one more value channel."""
    return linear(heads, key, value + 1)


def mlstm_state_bytes(heads: int, key: int, value: int) -> Cost:
    """Matrix, normaliser and stabiliser, in float32."""
    return Cost(state_bytes=4 * heads * (key * value + key + 1))


def memory(heads: int, sizes: Sequence[int], chunk: int) -> Cost:
    """Whole chunks: errors, updates, reads of weights and momentum, scores and outputs; the product of the two decays per head."""
    flops = chunk * (chunk + 1)
    for layer, (i, o) in enumerate(pairwise(sizes)):
        flops += (6 if layer else 5) * i * o + chunk * (i + o)
    return Cost(parameters=heads * sum(i * o for i, o in pairwise(sizes)), flops=2.0 * heads * flops)


def memory_state_bytes(heads: int, sizes: Sequence[int]) -> Cost:
    """The float32 matrices of the family `memory`: the chunk's first, the current ones, and their momentum."""
    return Cost(state_bytes=3 * 4 * heads * sum(i * o for i, o in pairwise(sizes)))


def context(heads: int, sizes: Sequence[int], chunk: int) -> Cost:
    """`memory` that attention asks first and feeds, with the maps per head between the two; attention itself is counted apart."""
    K, V = sizes[0], sizes[-1]
    maps = V * (K + V) + V * (2 * K + V) + 3 * V
    between = Cost(heads * (maps + 3), 2.0 * heads * (maps + sum(i * o for i, o in pairwise(sizes))))
    return memory(heads, sizes, chunk) + between


def segment_attention(heads: int, key: int, value: int, chunk: int, prefix: int) -> Cost:
    """Two keys per token of the segment so far, and the prefix."""
    return Cost(flops=2.0 * heads * (key + value) * (chunk + 1 + prefix))


def segment_cache_bytes(heads: int, key: int, value: int, chunk: int, bytes_per_value: int) -> Cost:
    """Keys and values, retrieved and own, of one segment."""
    return Cost(state_bytes=2 * chunk * heads * (key + value) * bytes_per_value)


def model_cost(config: Any, context: int, bytes_per_value: int = 4) -> Cost:
    """Of a `ModelConfig`, at a context length, with caches kept at `bytes_per_value`."""
    Z, D = config.vocab_size, config.width
    total = Cost(parameters=Z * D * (1 if config.tie_embeddings else 2), flops=2.0 * Z * D, state_bytes=POSITION_BYTES) + vector(D)
    for name in config.layer_names():
        total += layer_cost(config, name, context, bytes_per_value)
    return total


def layer_cost(config: Any, name: str, context: int, bytes_per_value: int = 4) -> Cost:
    """Of one of its layers, with norms."""
    layer, D = config.layers[name], config.width
    total = vector(D) + layer.mixer.cost(D, context, bytes_per_value)
    return total if layer.ffn.kind == "none" else total + vector(D) + layer.ffn.cost(D)


def training_flops(config: Any, context: int, teacher: Any = None, taught: Sequence[int] = ()) -> float:
    """Per token of training.

    Args:
        teacher: a `ModelConfig` that runs beside it (llm/train/distill.py). taught: the layers whose mixers alone learn, from the
            teacher's own layers up to the last of them; none: all of the model learns.
    """
    if teacher is None or not taught:
        beside = 0.0 if teacher is None else model_cost(teacher, context).flops
        return BACKWARD_AND_FORWARD * model_cost(config, context).flops + beside
    ours, theirs = config.layer_names(), teacher.layer_names()
    learning = sum(config.layers[ours[i]].mixer.cost(config.width, context, 4).flops for i in taught)
    beside = sum(layer_cost(teacher, name, context).flops for name in theirs[: max(taught) + 1])
    return BACKWARD_AND_FORWARD * learning + beside
