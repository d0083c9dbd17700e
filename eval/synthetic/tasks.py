"""The table of synthetic tasks. A new one is a function that draws batches, and a line here."""

from eval.synthetic import context_free, context_sensitive, groups, memory, regular
from eval.synthetic.task import LONGER, Task

ODD, EVEN = tuple(range(1, 41, 2)), tuple(range(2, 41, 2))
ODD_LONGER = (5, 11, 21, 39, 81, 121, 201)
FROM_3 = tuple(range(3, 41))
# answers are strings: two or three times as many tokens
STRINGS = (5, 10, 20, 40, 60, 80, 100)
BRACKETS = 13

TASKS: dict[str, Task] = {
    "parity": Task(regular.parity, 2),
    # at a loss of 1e-3 some of the longer sequences still go wrong
    "modular_sums": Task(regular.modular_sums, 5, steps=3000, solved=1e-4),
    "even_pairs": Task(regular.even_pairs, 2),
    "cycle_navigation": Task(regular.cycle_navigation, 5),
    "modular_arithmetic": Task(regular.modular_arithmetic, 8, train=ODD, tests=ODD_LONGER, steps=3000, solved=1e-4),
    "s5": Task(groups.s5, 120, steps=3000),
    "a5": Task(groups.a5, 60, steps=3000),
    "reverse_string": Task(context_free.reverse_string, 3, tests=STRINGS, steps=3000),
    "stack_manipulation": Task(
        context_free.stack_manipulation, 6, train=tuple(range(2, 41)), tests=STRINGS, last_only=False, steps=3000
    ),
    "modular_arithmetic_brackets": Task(context_free.modular_arithmetic_brackets, BRACKETS, tests=LONGER, steps=3000),
    "solve_equation": Task(context_free.solve_equation, BRACKETS, train=FROM_3, tests=LONGER, steps=3000),
    "duplicate_string": Task(context_sensitive.duplicate_string, 4, tests=STRINGS, steps=3000),
    "missing_duplicate_string": Task(context_sensitive.missing_duplicate_string, 4, train=EVEN, tests=(6, *LONGER[1:]), steps=3000),
    "odds_first": Task(context_sensitive.odds_first, 4, tests=STRINGS, steps=3000),
    "binary_addition": Task(context_sensitive.binary_addition, 4, train=FROM_3, tests=STRINGS, last_only=False, steps=3000),
    "binary_multiplication": Task(
        context_sensitive.binary_multiplication, 4, train=FROM_3, tests=STRINGS, last_only=False, steps=3000
    ),
    "compute_sqrt": Task(context_sensitive.compute_sqrt, 4, tests=STRINGS, steps=3000),
    "bucket_sort": Task(context_sensitive.bucket_sort, 6, tests=STRINGS, last_only=False, steps=3000),
    "recall": Task(
        memory.recall,
        64,
        size="pairs",
        train=(2, 4, 8),
        tests=(2, 4, 8, 16),
        last_only=False,
        width=64,
        hidden=0,
        batch=32,
        steps=2000,
        solved=3e-3,
    ),
    "induction": Task(memory.induction, 16, train=(64,), tests=(16, 64, 128, 256), width=64, hidden=0, batch=32, steps=2000),
    "selective_copy": Task(
        memory.selective_copy, 10, train=(64,), tests=(32, 64, 128), last_only=False, width=64, hidden=0, batch=32, steps=2000
    ),
    # its loss ends at the text's entropy
    "bigrams": Task(
        memory.bigrams,
        32,
        train=(64,),
        tests=(32, 64, 128),
        last_only=False,
        tested=memory.induced,
        width=64,
        hidden=0,
        batch=32,
        steps=2000,
        solved=0.0,
    ),
}
