"""The tokenizer of a dataset or run folder, loaded so that text can never produce a special token.

By default `tokenizers` turns a literal `<|endoftext|>` found in a document's *text* into the special id: a false document
boundary and a false reset of the state. The switch against it is not saved in tokenizer.json, so it is set at every load, here.
"""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE

from llm.errors import DataError

DOCUMENT_TOKEN = "<|endoftext|>"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in `path`, a tokenizer.json. Special tokens inside text are encoded as plain text. Raises DataError."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"tokenizer {path} does not exist; it lies beside manifest.json and in every run folder") from None
    except OSError as error:
        raise DataError(f"tokenizer {path} cannot be read ({error.strerror}); name a tokenizer.json that can") from None
    return parse_tokenizer(content, str(path))


def parse_tokenizer(content: bytes, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer in the bytes of a tokenizer.json, called `name` in messages. Raises DataError."""
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:
        raise DataError(f"{name} is no tokenizer.json ({error}); write one with Tokenizer.save") from None
    if not tokenizer.get_vocab_size():
        raise DataError(f"{name} holds no token; train the tokenizer before it is saved")
    tokenizer.encode_special_tokens = True
    if isinstance(tokenizer.model, BPE):
        # of its training: the same text would have other ids every time
        tokenizer.model.dropout = None
    # settings for batches of short texts, saved by some publishers: they would drop the rest of a document in silence
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One past the largest id, so that every id is an index into the embedding (ids may have gaps)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
