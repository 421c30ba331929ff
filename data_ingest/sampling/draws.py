"""Random numbers that are a pure function of (seed, stream, number).

Counter-based (Philox, Salmon et al. 2011): the draws of number `i` do not depend on how many
were made before, so any worker can make any part of a sample. Only the raw bit stream of numpy
is used, which, unlike the methods of `numpy.random.Generator`, does not change between versions.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Raw = npt.NDArray[np.uint64]

_WORDS_A_COUNTER = 4


def stable_hash(seed: int, text: str) -> int:
    """64 bits that depend on `seed` and `text` alone (unlike `hash`)."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def raw_draws(seed: int, stream: str, start: int, stop: int) -> Raw:
    """Four words for each number from `start` to `stop`: `[stop - start, 4]`.

    Row `i` is the same whatever range it is asked for in.
    """
    bits = np.random.Philox(key=[seed, stable_hash(0, stream)], counter=[start, 0, 0, 0])
    words: Raw = bits.random_raw(_WORDS_A_COUNTER * (stop - start))
    return words.reshape(-1, _WORDS_A_COUNTER)


def below(words: Raw, limits: npt.ArrayLike) -> Ints:
    """Maps words to integers in [0, limit), elementwise; every limit must be 1 to 2**31."""
    high = words >> np.uint64(32)
    scaled = (high * np.asarray(limits).astype(np.uint64)) >> np.uint64(32)
    return scaled.astype(np.int64)


class Draws:
    """An endless sequence of draws for one number of a stream."""

    def __init__(self, seed: int, stream: str, number: int) -> None:
        # The second counter word keeps these apart from the words of `raw_draws`.
        key = [seed, stable_hash(0, stream)]
        self._bits = np.random.Philox(key=key, counter=[0, number + 1, 0, 0])

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        return int(below(self._bits.random_raw(1), limit)[0])

    def order(self, count: int) -> Ints:
        """A permutation of `range(count)`."""
        return np.argsort(self._bits.random_raw(count), kind="stable").astype(np.int64)
