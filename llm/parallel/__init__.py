"""Sequences split over ranks: who they are, what they exchange, and how a recurrence crosses from one to the next."""

from llm.parallel.ranks import MODES, Mode, Ranks

__all__ = ["MODES", "Mode", "Ranks"]
