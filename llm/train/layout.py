"""Which part of each parameter a rank holds under ZeRO, inside the flat tensor that its optimizer sees.

Stages 1 and 2 lay a group's parameters end to end and cut the whole into equal parts, so a rank holds runs of few parameters.
Stage 3 cuts every parameter into equal parts, so a rank holds a run of each.
"""

from typing import NamedTuple


class Piece(NamedTuple):
    """Values `start` to `stop` of a flattened parameter, at `offset` of the rank's flat tensor."""

    parameter: int
    start: int
    stop: int
    offset: int

    @property
    def held(self) -> slice:
        return slice(self.offset, self.offset + self.stop - self.start)


def pieces(numels: list[int], zero: int, rank: int, ranks: int, held: int) -> list[Piece]:
    """What `rank` holds of parameters of `numels` values; `held`: the length of each rank's flat tensor, padding included."""
    parts = [-(-numel // ranks) for numel in numels]
    assert sum(parts) == held if zero == 3 else sum(numels) <= ranks * held, "ZeRO lays this group out in another way"
    found, begin = [], 0
    for k, (numel, part) in enumerate(zip(numels, parts, strict=True)):
        # where this rank's window on the parameter starts, counted from the parameter's first value
        window, size = (rank * part, part) if zero == 3 else (rank * held - begin, held)
        start, stop = max(0, window), min(numel, window + size)
        if start < stop:
            found.append(Piece(k, start, stop, begin if zero == 3 else start - window))
        begin += part if zero == 3 else numel
    return found
