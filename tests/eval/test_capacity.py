"""State capacity: who keeps k tokens holds the bits of k tokens, whatever it is given."""

import math

import numpy as np
import pytest
import torch

from eval.probes.capacity import CapacityConfig, alphabet, capacity, draw, draw_capacity
from eval.subject import Subject
from llm.errors import ConfigError
from llm.train.world import World

BITS = math.log2(4)


class Keeping:
    """Spells nouns with ids 1 to 4, and repeats the first `kept` tokens of what it read when the list comes again."""

    vocab_size, opening, packs, positions, window, device = 5, 0, False, 600, None, torch.device("cpu")

    def __init__(self, kept, n):
        self.kept, self.n = kept, n

    def narrow(self, state, rows):
        return state[:rows]

    def predicted_state_bytes(self, context):
        return self.kept

    def encode(self, text):
        return [1 + ord(letter) % 4 for letter in text]

    def logits(self, tokens_BT, state=None, starts_BT=None, last_only=False):
        read = tokens_BT if state is None else torch.cat([state, tokens_BT], 1)
        logits = torch.zeros(*tokens_BT.shape, 5)
        # never the opening
        logits[..., 0] = -50
        for t in range(read.shape[1] - tokens_BT.shape[1], read.shape[1]):
            place = t - self.n
            if 0 <= place < min(self.kept, self.n):
                logits[torch.arange(len(read)), t - read.shape[1], read[:, 1 + place]] = 50
        return logits, read


def subject_of(model, tmp_path) -> Subject:
    return Subject("test", model, tmp_path, {}, World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(("kept", "n"), [(0, 20), (5, 20), (20, 20), (64, 20)])
def test_bits_are_those_that_are_kept(kept, n, tmp_path):
    found = capacity(subject_of(Keeping(kept, n), tmp_path), CapacityConfig(lengths=[n], samples=6, lanes=3, window=7))
    (row,) = found.details["rows"]
    assert row["given_bits"] == n * BITS
    assert row["held_bits"] == pytest.approx(min(kept, n) * BITS, abs=1e-4)
    assert row["saved_bits"] == pytest.approx(min(kept, n) * BITS, abs=1e-4)
    assert row["state_bytes"] == kept
    assert found.figures["most bits held"].value == row["held_bits"]


def test_lists_are_of_the_alphabet_and_come_twice():
    ids = alphabet(Keeping(1, 1))
    assert ids.tolist() == [1, 2, 3, 4]
    document = draw(0, ids, 50, np.random.default_rng(0))
    assert document[0] == 0
    assert (document[1:51] == document[51:]).all()
    assert set(document[1:]) == {1, 2, 3, 4}


def test_a_braid_is_measured_and_drawn(subject):
    from matplotlib.figure import Figure

    found = capacity(subject, CapacityConfig(lengths=[4, 9], samples=3))
    assert [row["length"] for row in found.details["rows"]] == [4, 9]
    # an untrained model repeats nothing
    assert found.figures["most bits held"].value == 0
    figure = Figure()
    draw_capacity(figure, {"a": found.details})
    assert figure.axes[0].has_data()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lengths": [1]}, r"lengths \(\[1\]\)"),
        ({"lengths": []}, r"lengths \(\[\]\)"),
        ({"lengths": [300]}, r"lengths \(300\) twice reach behind the model's 600 positions"),
        ({"samples": 0}, r"samples \(0\)"),
    ],
)
def test_bad_settings_are_refused(values, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        capacity(subject_of(Keeping(1, 9), tmp_path), CapacityConfig(**values))
