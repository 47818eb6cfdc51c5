"""Shamir's secret sharing over GF(2^255 - 19) (Shamir 1979; specification, "Sharing").

In this field a share is 32 bytes and every element is a valid X25519 secret.  Site j holds the value at j + 1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

P: Final = 2**255 - 19
SHARE: Final = 32
Random = Callable[[int], bytes]
"""The system's CSPRNG: that many random bytes."""


def scalar(random: Random) -> int:
    """A uniform element of the field, but for a part of 2^-256."""
    return int.from_bytes(random(64), "little") % P


def to_bytes(element: int) -> bytes:
    """An element as it travels [32]."""
    return element.to_bytes(SHARE, "little")


def from_bytes(data: bytes) -> int | None:
    """The element that 32 bytes are; None where they are not below p, so that each has one spelling."""
    element = int.from_bytes(data, "little")
    return element if element < P else None


def split(secret: int, t: int, n: int, random: Random) -> list[int]:
    """Shares for sites 0 to n - 1, any t of which give the secret and any t - 1 of which say nothing about it."""
    coefficients = [secret, *(scalar(random) for _ in range(t - 1))]
    return [_value(coefficients, j + 1) for j in range(n)]


def _value(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):  # Horner; the reduction once a step keeps the numbers short
        value = (value * x + coefficient) % P
    return value


def weights_at_zero(sites: Sequence[int]) -> list[int]:
    """Lagrange's weights, with which the shares of different ``sites`` sum to the polynomial's value at 0."""
    found = []
    for i in sites:
        above = below = 1
        for j in sites:
            if j != i:
                above = above * (j + 1) % P
                below = below * (j - i) % P
        found.append(above * pow(below, -1, P) % P)
    return found


def join(shares: Mapping[int, int]) -> int:
    """The secret of exactly t shares by site; some number, and no error, where one of them is wrong."""
    return combine(weights_at_zero(list(shares)), list(shares.values()))


def combine(weights: Sequence[int], shares: Sequence[int]) -> int:
    """``join`` for many secrets of the same sites: the weights are made once."""
    return sum(weight * share for weight, share in zip(weights, shares, strict=True)) % P
