"""Verbatim memory: who knows the text by heart is not surprised by the same list; who has forgotten is, as by a new one."""

import numpy as np
import pytest
import torch

from eval.probes.verbatim import VerbatimConfig, draw, draw_verbatim, verbatim
from eval.subject import Subject
from llm.errors import ConfigError
from llm.train.world import World


class ByHeart:
    """Reads words as tokens; after two that it has read within `reach` tokens it expects what followed them, or else the end."""

    vocab_size, opening, packs, positions, window, device = 400, 0, False, 9000, None, torch.device("cpu")

    def __init__(self, reach):
        self.reach, self.ids = reach, {}

    def narrow(self, state, rows):
        return state[:rows]

    def encode(self, text):
        return [self.ids.setdefault(piece, len(self.ids) + 1) for piece in text.replace(",", " ,").split()]

    def logits(self, tokens_BT, state=None, starts_BT=None, last_only=False):
        read = tokens_BT if state is None else torch.cat([state, tokens_BT], 1)
        logits = torch.zeros(*tokens_BT.shape, self.vocab_size)
        for row, tokens in enumerate(read.tolist()):
            for t in range(len(tokens) - tokens_BT.shape[1], len(tokens)):
                known = range(max(1, t - self.reach), t)
                last = [s for s in known if tokens[s - 1 : s + 1] == tokens[t - 1 : t + 1]]
                if last:
                    logits[row, t - len(tokens), tokens[last[-1] + 1]] = 12
        return logits, read


def subject_of(model, tmp_path) -> Subject:
    return Subject("test", model, tmp_path, {}, World(0, 1, torch.device("cpu")))


def test_the_ratio_tells_who_remembers_what(tmp_path):
    config = VerbatimConfig(nouns=6, delays=[0, 120], samples=5, lanes=3, window=17)
    found = verbatim(subject_of(ByHeart(60), tmp_path), config)
    ratio = {(cell["delay"], cell["second"]): cell["ratio"] for cell in found.details["cells"]}
    # the first two tokens of the list are not foreseen: they are 2 of 11
    assert ratio[0, "same"] < 0.3
    assert ratio[0, "new"] == pytest.approx(1, abs=1e-3)
    assert ratio[0, "permuted"] > 0.9
    assert ratio[120, "same"] == pytest.approx(1, abs=1e-3)
    whole = verbatim(subject_of(ByHeart(9000), tmp_path), config)
    assert whole.figures["same after 120 tokens"].value < 0.3
    from matplotlib.figure import Figure

    figure = Figure()
    draw_verbatim(figure, {"a": found.details, "b": whole.details})
    assert len(figure.axes) == 2


def test_a_document_holds_both_lists_with_the_delay_between():
    model, config = ByHeart(1), VerbatimConfig(nouns=5)
    names = {}
    for delay in (0, 3, 77):
        for second in ("same", "permuted", "new"):
            read = draw(model, config, delay, second, 2)
            names = {i: piece for piece, i in model.ids.items()}
            first, again = ([names[t] for t in read.tokens[part].tolist()] for part in (read.first, read.second))
            assert (len(first), read.second.stop) == (9, len(read.tokens))
            between = read.second.start - read.first.stop
            assert between == delay + 1 + 9
            assert (first == again, sorted(first) == sorted(again)) == {
                "same": (True, True),
                "permuted": (False, True),
                "new": (False, False),
            }[second]


def test_a_braid_is_measured(subject):
    found = verbatim(subject, VerbatimConfig(nouns=3, delays=[5], samples=4))
    assert [figure.n for figure in found.figures.values()] == [4, 4, 4]
    assert all(np.isfinite(cell["ratio"]) and cell["first_nats"] > 0 for cell in found.details["cells"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"nouns": 1}, r"nouns \(1\)"),
        ({"delays": [-1]}, r"delays \(\[-1\]\)"),
        ({"delays": [9000]}, r"behind the model's 9000 positions"),
        ({"delays": [8990]}, r"reach behind 9000 positions"),
        ({"samples": 0}, r"samples \(0\)"),
    ],
)
def test_bad_settings_are_refused(values, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        verbatim(subject_of(ByHeart(1), tmp_path), VerbatimConfig(**values))
