"""Text that hides needles: its sentences, as many as asked for."""

import re
from itertools import cycle, islice

import numpy as np

from eval.subject import Subject
from eval.text_files import read_files
from eval.texts import TextConfig, read_texts
from llm.errors import DataError

END = re.compile(r"(?<=[.!?])\s+")
# says nothing, over and over
NOISE = ["The rain falls on the roof.", "The road goes on and on.", "A bird sits in the tree.", "The wind is cold.", "It is late."]


def read_haystack(subject: Subject, config: TextConfig) -> list[str]:
    """The sentences of the text that `config` names. Raises ConfigError, DataError."""
    if config.text is not None:
        config.check()
        texts = [found.text for found in read_files(config.text, config.field)]
    else:
        texts = [subject.model.decode(document[1:].tolist()) for document in read_texts(subject, config).tokens]
    sentences = [sentence for text in texts for sentence in END.split(text.strip()) if sentence]
    if not sentences:
        raise DataError(f"text ({config.text}) holds no sentences to hide a needle in; use another, or haystack=noise")
    return sentences


def sentences_of(haystack: list[str], n: int) -> list[str]:
    """The first `n`, from the start again where they end."""
    return list(islice(cycle(haystack), n))


def hidden(sentences: list[str], needles: list[str], depths: list[float]) -> str:
    """One text, with each needle before the sentence at its depth: 0 is the start, 1 the end."""
    places = np.array([round(depth * len(sentences)) for depth in depths])
    parts, first = [], 0
    for k in np.argsort(places, kind="stable"):
        parts += [*sentences[first : places[k]], needles[k]]
        first = places[k]
    return " ".join([*parts, *sentences[first:]])
