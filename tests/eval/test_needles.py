"""Needles: what a model can reach is what the heat map shows; who knows nothing is at chance; memory does not grow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import throughput
from eval.models.braid import BraidModel
from eval.needles.grid import draw_grid
from eval.needles.questions import Question, log_probabilities, rank_of_first
from eval.needles.tokens import NeedleTokensConfig, draw_tokens, needle_tokens, roles_of, shortest
from eval.prefill import prefill
from eval.subject import Subject
from llm.config import build
from llm.errors import ConfigError
from llm.model import Decoder, ModelConfig, model_kinds
from llm.train.world import World


class Reach:
    """Writes what followed the last token when it stood within the last `reach` tokens, and otherwise knows nothing."""

    vocab_size, opening, packs, positions, window, device = 120, 0, False, 4096, None, torch.device("cpu")

    def __init__(self, reach):
        self.reach = reach

    def logits(self, tokens_BT, state=None, starts_BT=None, last_only=False):
        read = tokens_BT if state is None else torch.cat([state, tokens_BT], 1)
        logits = torch.zeros(len(read), 1, self.vocab_size)
        for row, tokens in enumerate(read.tolist()):
            seen = tokens[max(0, len(tokens) - 1 - self.reach) : -1]
            if tokens[-1] in seen[:-1]:
                logits[row, 0, seen[seen.index(tokens[-1]) + 1]] = 5
        return logits, read


def subject_of(model, tmp_path) -> Subject:
    return Subject("test", model, tmp_path, {}, World(0, 1, torch.device("cpu")))


def braid_of(subject, tied, *mixers, **more) -> BraidModel:
    layers = {f"l{i}": {"mixer": mixer, "ffn": "swiglu"} for i, mixer in enumerate(mixers)}
    values = {"width": 32, "depth": len(layers), "vocab_size": 300, "layers": layers, "pattern": list(layers)}
    config = build(ModelConfig, {**values, "tie_embeddings": tied}, model_kinds(""))
    return BraidModel(Decoder.create(config, seed=3, **more), subject.manifest().tokenizer_path)


RETENTION, ATTENTION = {"kind": "retention", "heads": 2}, {"kind": "attention", "heads": 2}


@pytest.mark.parametrize("pairs", [1, 5])
def test_the_map_shows_how_far_a_model_reaches(pairs, tmp_path):
    config = NeedleTokensConfig(lengths=[32, 128], depths=5, samples=30, rows=7, window=10, pairs=pairs)
    found = needle_tokens(subject_of(Reach(60), tmp_path), config)
    assert len(found.details["cells"]) == 10
    for cell in found.details["cells"]:
        near = cell["length"] == 32 or cell["depth"] > 0.6
        assert cell["exact"]["value"] == near
        low, high = cell["first"]["interval"]
        assert cell["first"]["value"] == 1 if near else low <= 1 / 16 <= high
        assert cell["margin"] == (5 if near else 0)
    assert found.figures["ranks first at 32"].value == 1
    from matplotlib.figure import Figure

    figure = Figure()
    draw_grid(figure, {"a": found.details, "b": found.details})
    assert np.array(figure.axes[1].images[0].get_array()).shape == (5, 2)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mixers", [[RETENTION, ATTENTION], [{"kind": "mamba2", "heads": 2, "state": 8}]], ids=str)
def test_an_untrained_model_is_at_chance(subject, mixers, tied):
    config = NeedleTokensConfig(lengths=[16, 64], depths=4, samples=150, rows=50, pairs=4, candidates=8)
    found = needle_tokens(replace(subject, model=braid_of(subject, tied, *mixers)), config)
    low, high = found.details["whole"]["first"]["interval"]
    assert high - low < 0.06
    assert low <= found.figures["chance"].value == 1 / 8 <= high


class Other(World):
    """One of two ranks, which adds what the other one found."""

    def sum(self, values):
        self.found.append(values.clone())
        return sum(self.found)


def test_ranks_together_find_what_one_finds(tmp_path):
    config = NeedleTokensConfig(lengths=[32, 128], depths=3, samples=5, rows=2)
    alone = needle_tokens(subject_of(Reach(60), tmp_path), config)
    Other.found = []
    for rank in (0, 1):
        world = Other(rank, 2, torch.device("cpu"))
        together = needle_tokens(replace(subject_of(Reach(60), tmp_path), world=world), config)
    assert together == alone


def test_a_question_holds_each_pair_once_at_its_depth():
    roles = roles_of(120, 7, 20, 30)
    assert sorted([7, *roles.keys, *roles.values, *roles.filler]) == list(range(120))
    for k in range(60):
        rng, pairs = np.random.default_rng(k), 1 + k % 6
        depth, length = (0, 0.3, 1)[k % 3], shortest(pairs) + k // 10
        question = draw_tokens(rng, roles, length, depth, pairs, 8)
        prompt = question.prompt.tolist()
        assert (len(prompt), prompt[0]) == (length - 1, 7)
        at = prompt.index(prompt[-1])
        assert at == 1 + round(depth * (length - 5))
        assert [prompt[at + 1]] == question.candidates[0]
        assert np.isin(prompt, roles.keys).sum() == pairs + 1
        assert {c for (c,) in question.candidates[:pairs]} == set(prompt) & set(roles.values.tolist())


def test_candidates_of_several_tokens_are_scored_as_one_pass_scores_them(subject):
    model = subject.model
    rng = np.random.default_rng(0)
    questions = [Question(rng.integers(1, 300, n), [rng.integers(1, 300, size).tolist() for size in (3, 1, 4)]) for n in (9, 20, 1)]
    found, exact = log_probabilities(model, questions, window=6)
    for row, question in enumerate(questions):
        for column, candidate in enumerate(question.candidates):
            whole = torch.tensor([[*question.prompt, *candidate]])
            p = model.logits(whole[:, :-1])[0].log_softmax(-1)[0, len(question.prompt) - 1 :]
            assert found[row, column] == pytest.approx(p[torch.arange(len(candidate)), candidate].sum().item(), rel=1e-9)
            if column == 0:
                assert exact[row] == (p.argmax(-1).tolist() == candidate)


def test_ties_are_broken_evenly():
    ranks = [rank_of_first(np.array([1.0, 1, 1, 2]), np.random.default_rng(k)) for k in range(600)]
    assert np.bincount(ranks, minlength=5)[2:] == pytest.approx([200, 200, 200], abs=40)


def test_windows_read_what_one_pass_reads_and_memory_does_not_grow(subject):
    prompts = [np.random.default_rng(k).integers(1, 300, n) for k, n in enumerate((50, 23))]
    whole, _ = prefill(subject.model, prompts, window=50)
    torch.testing.assert_close(prefill(subject.model, prompts, window=7)[0], whole, rtol=1e-10, atol=1e-10)
    alone, _ = prefill(subject.model, prompts[1:], window=9)
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-10, atol=1e-10)
    recurrent = braid_of(subject, True, RETENTION, {"kind": "mamba2", "heads": 2, "state": 8})
    bytes_at = []
    for n in (64, 640):
        widths = Widest(recurrent)
        _, state = prefill(widths, [np.arange(n) % 300], window=32)
        assert widths.widest == 32
        bytes_at.append(recurrent.state_bytes(state))
    assert bytes_at[0] == bytes_at[1] == recurrent.predicted_state_bytes(64)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_tokens_take_no_more_memory_than_a_hundred_thousand(subject):
    cpu = torch.device("cpu")
    if not throughput.reset_peak(cpu):
        pytest.skip("the system does not say how much memory a process had at most")
    asked = replace(subject, model=braid_of(subject, True, RETENTION, {"kind": "mamba2", "heads": 2, "state": 8}))
    peaks = []
    for length in (100_000, 1_000_000):
        throughput.reset_peak(cpu)
        found = needle_tokens(asked, NeedleTokensConfig(lengths=[length], depths=1, samples=1))
        assert found.details["cells"][0]["length"] == length
        peaks.append(throughput.peak(cpu))
    # the ids themselves, and what draws them, are some bytes a token
    assert peaks[1] - peaks[0] < 64 * 900_000


class Widest:
    """Notes the most tokens that a model was given at once."""

    def __init__(self, model):
        self.model, self.packs, self.widest = model, model.packs, 0

    def logits(self, tokens_BT, *more, **others):
        self.widest = max(self.widest, tokens_BT.shape[1])
        return self.model.logits(tokens_BT, *more, **others)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lengths": []}, r"lengths \(\[\]\)"),
        ({"lengths": [5000]}, r"behind the model's 4096 positions"),
        ({"depths": 0}, r"depths \(0\)"),
        ({"pairs": 17}, r"pairs \(17\)"),
        ({"candidates": 33}, r"candidates \(33\)"),
        ({"keys": 90}, "leave no filler"),
        ({"lengths": [12], "pairs": 5}, r"lengths \(12\) must be at least 14"),
    ],
)
def test_bad_settings_are_refused(values, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        needle_tokens(subject_of(Reach(9), tmp_path), NeedleTokensConfig(**values))
