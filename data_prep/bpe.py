"""Training a byte-level BPE tokenizer: every byte has an id, so every text has a spelling and no id means "unknown"."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm.data.tokenizer import DOCUMENT_TOKEN


def train_bpe(texts: Iterable[str], vocabulary: int) -> bytes:
    """The tokenizer.json of a BPE of at most `vocabulary` ids, the document token among them.

    Little text may give fewer ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[DOCUMENT_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode()
