"""A tokenizer as `transformers` loads it: tokenizer.json, which opens every text with the document token, and its config."""

import json
from pathlib import Path

from tokenizers.processors import TemplateProcessing

from llm.data import DOCUMENT_TOKEN, load_tokenizer
from llm.data.tokenizer import vocabulary_size
from llm.errors import DataError


def write_tokenizer(folder: Path, path: Path, vocab_size: int, context: int, chat_template: Path | None = None) -> int:
    """Write the files of the tokenizer at `path`. Returns the document token's id.

    Raises:
        DataError: it is missing, lacks the document token or has ids that a model of `vocab_size` does not; no such template.
    """
    tokenizer = load_tokenizer(path)
    start, vocabulary = tokenizer.token_to_id(DOCUMENT_TOKEN), vocabulary_size(tokenizer)
    if start is None or vocabulary > vocab_size:
        raise DataError(
            f"tokenizer {path} (ids to {vocabulary - 1}, {DOCUMENT_TOKEN}: {start}) does not fit a model of {vocab_size} ids; "
            "use the tokenizer.json of the model's own run"
        )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{DOCUMENT_TOKEN} $A", pair=f"{DOCUMENT_TOKEN} $A $B:1", special_tokens=[(DOCUMENT_TOKEN, start)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        # 5.x would write a class of its own, which 4.57 cannot load
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), DOCUMENT_TOKEN),
        "padding_side": "left",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "vocabulary": vocabulary,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if chat_template is not None:
        try:
            (folder / "chat_template.jinja").write_text(chat_template.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"chat template {chat_template} cannot be read ({error}); name a Jinja file") from None
    return start
