"""Work in other processes: in order, bounded, and with a sentence when the system ends one."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from data_prep.workers import Workers
from llm.errors import DataError


def late(k: int) -> tuple[int, int]:
    time.sleep(0.02 * (k % 3 == 0))
    return k, os.getpid()


def killed(k: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refused(k: int) -> None:
    raise DataError("a sentence")


@pytest.mark.multirank
def test_results_come_in_order_and_few_items_are_taken_ahead():
    taken = []

    def items() -> Iterator[int]:
        for k in range(30):
            taken.append(k)
            yield k

    with Workers(2) as workers:
        for n, (k, process) in enumerate(workers.in_order(late, items())):
            assert (n, process != os.getpid()) == (k, True)
            assert len(taken) <= n + 6
        assert n == 29
        with pytest.raises(DataError, match="a sentence"):
            list(workers.in_order(refused, range(9)))
        with pytest.raises(DataError, match=r"workers \(2\) lost a process"):
            list(workers.in_order(killed, range(9)))


def test_a_single_item_or_worker_needs_no_process():
    with Workers(1) as one, Workers(9) as many:
        assert [process for _, process in one.in_order(late, range(4))] == [os.getpid()] * 4
        assert [process for _, process in many.in_order(late, [7])] == [os.getpid()]
        assert list(many.in_order(late, [])) == []
