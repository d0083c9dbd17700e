"""Keys, values and words of needles, drawn by a seeded generator."""

import uuid
from collections.abc import Callable, Collection

import numpy as np

ADJECTIVES = (
    "ancient bitter brave bright broken calm careful cheap clever cold common curious damp dark deep distant dusty eager "
    "early empty faint famous fierce foggy gentle golden grand heavy hidden hollow humble idle jolly kind late lonely lucky "
    "narrow noisy odd patient plain polite quiet rapid rough rusty salty sharp silent simple sleepy smooth stubborn sturdy "
    "sunny tender thirsty warm"
).split()
NOUNS = (
    "anchor apple arrow barrel basket bell blanket bottle bridge button candle canyon carpet castle cellar chimney clock "
    "compass cradle desert engine falcon feather ferry forest garden glacier guitar hammer harbor helmet island kettle "
    "ladder lantern library market meadow mirror mountain needle ocean orchard paddle pencil pepper pillow planet rabbit "
    "river saddle sailor shovel teapot tunnel valley violin whistle window"
).split()
# of made words, which tell a reader nothing beforehand
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def adjective_noun(rng: np.random.Generator) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def number(rng: np.random.Generator) -> str:
    """Of 7 digits."""
    return str(rng.integers(1_000_000, 10_000_000))


def hexadecimal(rng: np.random.Generator) -> str:
    """A UUID, version 4."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def made_word(rng: np.random.Generator) -> str:
    """Three syllables."""
    return "".join(rng.choice(list(letters)) for letters in (CONSONANTS, VOWELS) * 3)


def variable(rng: np.random.Generator) -> str:
    """Five capital letters."""
    return "".join(chr(65 + k) for k in rng.integers(26, size=5))


DRAW: dict[str, Callable[[np.random.Generator], str]] = {"words": adjective_noun, "numbers": number, "uuids": hexadecimal}


def distinct(
    rng: np.random.Generator, draw: Callable[[np.random.Generator], str], n: int, besides: Collection[str] = ()
) -> list[str]:
    """`n` different ones, none of `besides`."""
    found: dict[str, None] = {}
    while len(found) < n:
        word = draw(rng)
        if word not in besides:
            found[word] = None
    return list(found)
