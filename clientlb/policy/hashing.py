"""Hashes that agree between processes, machines and versions of Python. The built-in `hash` of text does not."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

HASHES = 1 << 64
"""Number of different hashes."""
_MASK = HASHES - 1


def hash_of(text: str | bytes, salt: str = "") -> int:
    """A hash of 64 bits."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(blake2b(data, digest_size=8, key=salt.encode()[:64]).digest(), "big")


@lru_cache(maxsize=1 << 16)
def hash_of_endpoint(id: str) -> int:
    """The hash of an endpoint's id, remembered: a list of thousands is looked at again whenever one of them changes."""
    return hash_of(id)


def mix(a: int, b: int) -> int:
    """A hash of two hashes: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over their exclusive or."""
    mixed = a ^ b
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
