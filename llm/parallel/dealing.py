"""Which heads, and which groups of a stream, each rank gets where an op is split over heads.

Every rank gets as many: ceil(H / n) heads, where the last ranks' may repeat the last head, whose results are dropped. Of a stream
that comes in fewer groups than heads a rank gets those that its heads read, so that several ranks may have the same one.
"""

from functools import lru_cache
from itertools import chain
from typing import NamedTuple


class Deal(NamedTuple):
    """Of one stream.

    groups: those of each rank. reads: of these, which each of a rank's heads reads; None where head j of c reads group
    j // (c / g), as ops take it. first: where each group is found among what all ranks have, a copy per head unless reads is None.
    """

    groups: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...] | None
    first: tuple[int, ...]

    @property
    def all_groups(self) -> list[int]:
        return list(chain(*self.groups))


@lru_cache(maxsize=256)
def deal(groups: int, heads: int, size: int) -> Deal:
    """Of a stream in `groups` groups, to the ranks of an op of so many heads."""
    each = heads_each(heads, size)
    wanted = [[min(head, heads - 1) * groups // heads for head in range(rank * each, (rank + 1) * each)] for rank in range(size)]
    distinct = [sorted(set(of_heads)) for of_heads in wanted]
    most = max(map(len, distinct))
    given = [have + have[-1:] * (most - len(have)) for have in distinct]
    reads = [[have.index(group) for group in of_heads] for have, of_heads in zip(given, wanted, strict=True)]
    as_ops_take = [head * most // each for head in range(each)]
    unasked = each % most == 0 and all(read == as_ops_take for read in reads)
    found = list(chain(*(given if unasked else wanted)))
    first = tuple(found.index(group) for group in range(groups))
    return Deal(tuple(map(tuple, given)), None if unasked else tuple(map(tuple, reads)), first)


def heads_each(heads: int, size: int) -> int:
    """Heads of a rank."""
    return -(-heads // size)
