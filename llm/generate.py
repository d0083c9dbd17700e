"""Text from a model, one token at a time: the prompt in one pass, then single steps from the recurrent state.

Nucleus sampling: Holtzman et al., arXiv:1904.09751 sec. 3.1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from llm.data import DOCUMENT_TOKEN, load_tokenizer
from llm.decode import Decoding
from llm.errors import ConfigError, DataError
from llm.model import Decoder
from llm.split import SplitDecoder


@dataclass(frozen=True)
class Sampling:
    """tokens: at most this many. temperature: 0 takes the most likely token. top_p: keep the fewest tokens that hold this much."""

    tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError."""
        if self.tokens < 1:
            raise ConfigError(f"tokens ({self.tokens}) must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature ({self.temperature}) must be finite and not negative; 0 takes the most likely token")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p ({self.top_p}) is a share of probability; use 0 < top_p <= 1")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed ({self.seed}) must be at least 0 and below 2^63")


def encode_prompt(tokenizer: Tokenizer, prompt: str, vocab_size: int) -> list[int]:
    """The ids of a document that begins with `prompt`. `load_tokenizer`'s tokenizers take special tokens in it as plain text.

    Raises:
        DataError: the tokenizer lacks the document token, or has ids that the model does not.
    """
    start = tokenizer.token_to_id(DOCUMENT_TOKEN)
    if start is None:
        raise DataError(f"the tokenizer lacks the token {DOCUMENT_TOKEN}, which opens every document; use the run's own tokenizer")
    if not prompt.isascii() and prompt.encode(errors="replace").decode() != prompt:
        raise DataError(f"the prompt ({prompt!r}) is not valid UTF-8; encode it so")
    ids = [start, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    if max(ids) >= vocab_size:
        raise DataError(f"the tokenizer gives id {max(ids)} where the model has {vocab_size}; use the tokenizer of the model's run")
    return ids


def generate(
    model: Decoder | SplitDecoder, prompt: list[int], sampling: Sampling, stop: int | None = None, compiled: bool = False
) -> Iterator[int]:
    """The ids that follow `prompt`, until `stop` (which is not given out) or `sampling.tokens`. The same seed, the same ids.

    compiled: single tokens run through `torch.compile`, on a GPU as one CUDA graph (llm/decode.py).

    Ranks of a SplitDecoder read the prompt together; then the first one goes on alone, and the others give out nothing.
    """
    sampling.check()
    device = model.embedding.device
    generator = torch.Generator().manual_seed(sampling.seed)
    with torch.no_grad():
        out = model(torch.tensor([prompt], device=device), last_only=True)
        if isinstance(model, SplitDecoder) and not model.ranks.first:
            return
        assert out.logits is not None
        logits_Z, state = out.logits[0, 0], out.state
        steady = Decoding(model.decoder if isinstance(model, SplitDecoder) else model, state, sampling.tokens) if compiled else None
        for n in range(sampling.tokens):
            token = choose(logits_Z, sampling, generator)
            if token == stop:
                return
            yield token
            if n + 1 < sampling.tokens:
                token_B = torch.tensor([token], device=device)
                if steady is not None:
                    logits_BZ = steady(token_B)
                else:
                    logits_BZ, state = model.step(token_B, state)
                logits_Z = logits_BZ[0]


def choose(logits_Z: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token. Draws are made in float64 on the host, so that they do not depend on the device."""
    logits_Z = logits_Z.double().cpu()
    if sampling.temperature == 0:
        return int(logits_Z.argmax())
    p_Z, ids = (logits_Z / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    # a token stays while the more likely ones together do not reach top_p: the first always stays
    kept = p_Z.masked_fill(p_Z.cumsum(-1) - p_Z >= sampling.top_p, 0)
    return int(ids[torch.multinomial(kept, 1, generator=generator)])


def generate_text(
    model: Decoder | SplitDecoder, tokenizer: Path, prompt: str, sampling: Sampling, compiled: bool = False
) -> Iterator[str]:
    """The prompt and what follows it, piece by piece, to the end of the document at most. Raises ConfigError, DataError."""
    sampling.check()
    words = load_tokenizer(tokenizer)
    ids = encode_prompt(words, prompt, model.config.vocab_size)
    yield prompt
    yield from text_of(words, generate(model, ids, sampling, ids[0], compiled))


def text_of(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    """The text of `ids`, piece by piece: bytes of an unfinished character are held back until it is whole."""
    stream = DecodeStream(skip_special_tokens=True)
    for token in ids:
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece
