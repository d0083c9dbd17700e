"""Synthetic tasks against plain Python: each sequence is read by a program that knows the rule in words alone."""

import collections
import math
import re

import numpy as np
import pytest
import torch

from eval.synthetic import context_free, context_sensitive, groups, memory, regular
from eval.synthetic.tasks import TASKS
from llm.errors import ConfigError
from llm.ops.cross_entropy import IGNORED


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(sample, batch, size, **more):
    """(tokens, labels) of each row, as lists."""
    return list(zip(*(x.tolist() for x in sample(batch, size, generator(size), **more)), strict=True))


def asked(labels):
    return [label for label in labels if label != IGNORED]


def given(tokens, labels):
    """The tokens before the places of the answers, which are shown as one and the same token."""
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert len(set(tokens[first:])) == 1
    assert tokens[first] not in tokens[:first]
    return tokens[:first]


def number(bits):
    """From the lowest bit on."""
    return int("".join(map(str, bits))[::-1], 2)


@pytest.mark.parametrize("name", TASKS)
def test_batches_hold_ids_and_are_functions_of_the_seed(name):
    task = TASKS[name]
    for sample in filter(None, (task.sample, task.tested)):
        for size in {min(task.train), max(task.train), *task.tests}:
            tokens, labels = sample(16, size, generator())
            assert tokens.shape == labels.shape
            assert len(tokens) == 16
            assert tokens.dtype == labels.dtype == torch.long
            assert tokens.min() >= 0
            assert tokens.max() < task.vocab
            assert ((labels == IGNORED) | ((labels >= 0) & (labels < task.vocab))).all()
            again, other = sample(16, size, generator()), sample(16, size, generator(1))
            assert torch.equal(again[0], tokens)
            assert torch.equal(again[1], labels)
            assert size < 5 or not torch.equal(other[0], tokens)
    # what tests ask is there, and no single answer is right
    tokens, labels = (task.tested or task.sample)(256, max(task.tests), generator())
    labels = labels[:, -1] if task.last_only else labels[labels != IGNORED]
    assert (labels != IGNORED).all()
    assert labels.bincount().max() < 0.6 * len(labels)


def test_parity_counts_the_ones():
    for bits, labels in rows(regular.parity, 16, 23):
        assert labels == [bits[: i + 1].count(1) % 2 for i in range(23)]


def test_even_pairs_asks_whether_the_first_and_the_last_differ():
    for bits, labels in rows(regular.even_pairs, 16, 23):
        assert labels == [int(bit != bits[0]) for bit in bits]


def test_a_cycle_is_walked():
    for steps, labels in rows(regular.cycle_navigation, 16, 23):
        place = 0
        for step, label in zip(steps, labels, strict=True):
            place = [(place + 4) % 5, place, (place + 1) % 5][step]
            assert label == place


def test_modular_arithmetic_is_pythons():
    for tokens, labels in rows(regular.modular_arithmetic, 32, 23):
        text = "".join("01234+-*"[token] for token in tokens)
        assert re.fullmatch(r"\d([-+*]\d)*", text)
        for i, label in enumerate(labels):
            assert label == (IGNORED if i % 2 else eval(text[: i + 1]) % 5)


def test_sums_are_pythons():
    for numbers, labels in rows(regular.modular_sums, 16, 23):
        assert set(numbers) <= set(range(5))
        assert labels == [sum(numbers[: i + 1]) % 5 for i in range(23)]


@pytest.mark.parametrize(("even", "order"), [(False, 120), (True, 60)])
def test_words_of_a_group_move_letters(even, order):
    elements = groups.group(even)
    assert len(set(elements)) == order
    # closed, and every row and column of the table holds every element once
    table = groups.products(even)
    assert (table.sort(0).values == torch.arange(order)[:, None]).all()
    assert (table.sort(1).values == torch.arange(order)).all()
    for word, labels in rows(groups.word_problem, 16, 12, even=even):
        letters = list(range(5))
        for element, label in zip(word, labels, strict=True):
            letters = [elements[element][letter] for letter in letters]
            assert elements[label] == tuple(letters)


def test_strings_are_reversed_doubled_and_sorted():
    rules = {
        context_free.reverse_string: lambda x: x[::-1],
        context_sensitive.duplicate_string: lambda x: x + x,
        context_sensitive.bucket_sort: sorted,
        context_sensitive.odds_first: lambda x: (
            [s for i, s in enumerate(x, 1) if i % 2] + [s for i, s in enumerate(x, 1) if i % 2 == 0]
        ),
    }
    for sample, rule in rules.items():
        for length in (1, 2, 9):
            for tokens, labels in rows(sample, 16, length):
                x = given(tokens, labels)
                assert len(x) == length
                assert asked(labels) == rule(x)


@pytest.mark.parametrize("length", [2, 3, 9, 30])
def test_a_stack_is_a_list(length):
    emptied = 0
    for tokens, labels in rows(context_free.stack_manipulation, 64, length):
        x, stack = tokens[:length], []
        assert x[0] < 2 <= x[-1]
        assert x == sorted(x, key=lambda token: token > 1)
        for token in x:
            if token == 2:
                emptied += not stack
                stack = stack[:-1]
            else:
                stack.append({0: 0, 1: 1, 3: 0, 4: 1}[token])
        assert asked(labels) == [*stack[::-1], 2]
        assert labels[length:] == asked(labels) + [IGNORED] * (length - len(stack))
        assert set(tokens[length:]) == {5}
    assert emptied or length == 2


SYMBOLS = "01234+-*()x="


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 20, 41])
def test_expressions_are_pythons(length):
    for tokens, labels in rows(context_free.modular_arithmetic_brackets, 32, length):
        text = "".join(SYMBOLS[token] for token in given(tokens, labels))
        assert len(text) == length
        assert asked(labels) == [eval(text) % 5]
        # brackets leave nothing to precedence: inside each is a number or one operator
        flat = text
        while "(" in flat:
            flat, count = re.subn(r"\((?:-?\d|(?:-?\d)[-+*](?:-?\d))\)", "1", flat)
            assert count
        assert re.fullmatch(r"-?\d", flat)


@pytest.mark.parametrize("length", [3, 4, 5, 20, 41])
def test_one_number_solves_an_equation(length):
    for tokens, labels in rows(context_free.solve_equation, 32, length):
        text = "".join(SYMBOLS[token] for token in given(tokens, labels))
        left, right = text.split("=")
        assert len(text) == length
        assert "*" not in text
        assert [x for x in range(5) if eval(left.replace("x", str(x))) % 5 == int(right)] == asked(labels)


def test_the_missing_symbol_makes_two_copies():
    places = collections.Counter()
    for tokens, labels in rows(context_sensitive.missing_duplicate_string, 64, 10):
        x = given(tokens, labels)
        hole = x.index(2)
        places[hole] += 1
        x[hole] = asked(labels)[0]
        assert x[:5] == x[5:]
    assert len(places) == 10


@pytest.mark.parametrize("length", [3, 4, 12, 100])
def test_sums_and_products_are_pythons(length):
    for sample, rule in ((context_sensitive.binary_addition, int.__add__), (context_sensitive.binary_multiplication, int.__mul__)):
        for tokens, labels in rows(sample, 32, length):
            x = tokens[:length]
            a, b = x[: x.index(2)], x[x.index(2) + 1 :]
            *bits, end = asked(labels)
            assert set(tokens[length:]) == {3}
            assert end == 2
            assert bits[-1] == 1
            assert number(bits) == rule(number(a), number(b))
            assert labels[length:][: len(bits) + 1] == [*bits, end]


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_roots_are_rounded_down(length):
    for tokens, labels in rows(context_sensitive.compute_sqrt, 32, length):
        x, root = number(given(tokens, labels)[::-1]), number(asked(labels)[::-1])
        assert root**2 <= x < (root + 1) ** 2
        assert len(asked(labels)) == math.ceil(length / 2)


@pytest.mark.parametrize(("pairs", "length", "vocab"), [(1, 4, 4), (2, 64, 64), (8, 64, 64), (16, 64, 64), (3, 13, 8)])
def test_answers_of_recall_are_those_of_a_dict(pairs, length, vocab):
    for tokens, labels in rows(memory.recall, 32, pairs, length=length, vocab=vocab):
        shown = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        places = {i: label for i, label in enumerate(labels) if label != IGNORED}
        assert len(shown) == len(set(shown.values())) == pairs
        assert all(0 < key < vocab // 2 <= value < vocab for key, value in shown.items())
        assert {tokens[i]: label for i, label in places.items()} == shown
        assert min(places) >= 2 * pairs


def test_near_keys_are_asked_more_often_than_far_ones():
    _, labels = memory.recall(2000, 1, generator())
    count = (labels != IGNORED).sum(0)[2::2]
    assert count[0] > 2 * count[3] > 0


@pytest.mark.parametrize("length", [3, 4, 50])
def test_induction_asks_what_followed(length):
    for tokens, labels in rows(memory.induction, 64, length):
        assert tokens.count(0) == 2
        assert tokens[-1] == 0
        assert asked(labels) == [labels[-1]] == [tokens[tokens.index(0) + 1]]


def test_selective_copying_keeps_the_order():
    for length in (8, 40):
        for tokens, labels in rows(memory.selective_copy, 32, length):
            assert asked(labels) == [token for token in tokens if token > 1]
            assert (len(tokens), tokens[length:]) == (length + 8, [1] * 8)
            assert tokens[:length].count(0) == length - 8


def test_bigrams_are_the_models_but_behind_triggers():
    text, model = rows(memory.bigrams, 400, 60), memory.bigram_model(32)
    counts = np.zeros((32, 32))
    for (tokens, labels), (same, induced) in zip(text, rows(memory.induced, 400, 60), strict=True):
        assert labels[:-1] == tokens[1:]
        assert same == tokens
        follows: dict[int, int] = {}
        for token, label, test in zip(tokens, labels, induced, strict=True):
            if token > 2:
                counts[token, label] += 1
                assert test == IGNORED
            else:
                assert test == follows.get(token, IGNORED)
                assert follows.setdefault(token, label) == label > 2
    assert model.sum(1) == pytest.approx(1)
    share = counts[3:] / counts[3:].sum(1, keepdims=True)
    # five standard errors of a share at the rarest token
    assert np.abs(share - model[3:]).max() < 5 * 0.5 / np.sqrt(counts[3:].sum(1).min())


@pytest.mark.parametrize(
    ("sample", "size", "more", "sentence"),
    [
        (memory.recall, 9, {"vocab": 16}, r"pairs \(9\) must be at most 7 with length 64 and vocab 16"),
        (regular.modular_arithmetic, 4, {}, r"length \(4\) of modular_arithmetic must be odd"),
        (context_free.stack_manipulation, 1, {}, r"length \(1\) of stack_manipulation"),
        (context_free.solve_equation, 2, {}, r"length \(2\) of solve_equation"),
        (context_sensitive.missing_duplicate_string, 5, {}, r"length \(5\) of missing_duplicate_string must be even"),
        (context_sensitive.binary_addition, 2, {}, r"length \(2\) of two numbers"),
        (memory.induction, 2, {}, r"length \(2\) of induction"),
        (memory.selective_copy, 7, {}, r"length \(7\) of selective_copy must be at least 8"),
    ],
)
def test_sizes_that_no_sequence_has_are_refused(sample, size, more, sentence):
    with pytest.raises(ConfigError, match=sentence):
        sample(1, size, generator(), **more)
