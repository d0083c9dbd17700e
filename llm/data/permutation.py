"""A pseudo-random permutation of [0, N) by index: any position in microseconds, nothing of size N in memory, and its inverse.

A balanced Feistel network permutes D = 4^h >= N numbers: a round maps (left, right) to (right, left xor F(right)) and is undone by
(right xor F(left), left), whatever F is; so the network is a bijection of [0, D). Cycle walking (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002) applies it until the result is below N. Each x < N lies on a cycle of the network, so the walk
ends, at the next number of the cycle that is below N: a bijection of [0, N), undone by walking backwards. h is the smallest that
fits, so D < 4 N: an index takes D / N < 4 networks on average.

F is the finaliser of splitmix64 (Steele, Lea and Flood, 2014) of the half plus key and round. This shuffles training data; it is no
cipher. Over 400,000 keys places, and pairs of them, are as even as chance allows from N = 17 on; up to N = 16, where the halves are
two bits, some places come up to 9 % too often or too rarely.
"""

import numpy as np
import xxhash

ROUNDS = 6
MAX_SIZE = 1 << 48
GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


def source_key(seed: int, source: str) -> int:
    """The key of a source's permutations under a seed: below 2^64."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{source}".encode())


def epoch_keys(source_keys: np.ndarray | int, epochs: np.ndarray | int) -> np.ndarray:
    """uint64: the keys of single epochs, from `source_key`s and epochs that broadcast against each other."""
    return mix(_words(source_keys) + _words(epochs) * np.uint64(GOLDEN))


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """Where each index goes, int64.

    Args:
        index: integers in [0, size). size: 1 to 2^48, alone or one for each index. key: below 2^64, alone or one for each index.
    """
    return _walk(index, size, key, range(1, ROUNDS + 1), inverse=False)


def unpermute(image: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """The inverse: unpermute(permute(index, size, key), size, key) is index."""
    return _walk(image, size, key, range(ROUNDS, 0, -1), inverse=True)


def _walk(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int, rounds: range, inverse: bool) -> np.ndarray:
    index, size, key = np.broadcast_arrays(_words(index), _words(size), _words(key))
    assert ((index < size) & (size <= MAX_SIZE)).all(), "an index outside of its permutation"
    # frexp's exponent is the bit length, exact up to 2^53
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1]
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    out = _network(index, half, key, rounds, inverse)
    outside = np.flatnonzero(out >= size)
    walking, bound, half, key = out[outside], size[outside], half[outside], key[outside]
    while outside.size:
        walking = _network(walking, half, key, rounds, inverse)
        out[outside] = walking
        on = walking >= bound
        outside, walking, bound, half, key = outside[on], walking[on], bound[on], half[on], key[on]
    return out.astype(np.int64)


def _network(x: np.ndarray, half: np.ndarray, key: np.ndarray, rounds: range, inverse: bool) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    if inverse:
        # backwards, the halves change their parts
        left, right = right, left
    for r in rounds:
        left, right = right, left ^ (mix(right + (key + np.uint64(r * GOLDEN & WORD))) & mask)
    if inverse:
        left, right = right, left
    return left << half | right


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, a bijection of uint64: every bit of x reaches every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _words(x: np.ndarray | int) -> np.ndarray:
    """uint64 arrays, never scalars: products wrap around in silence only in arrays."""
    return np.atleast_1d(np.asarray(x)).astype(np.uint64)
