"""An exact sampler of the discrete Gaussian, vectorised (Canonne, Kamath and Steinke 2020, Algorithms 1 to 3).

Every decision is a 64-bit coin of the system's CSPRNG against an odd of at least 1/e, computed in float64, so that each
value's probability is within a factor of 1 +- 2^-40 of exact.  numpy only; a repeated call never repeats its coins.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nexus_common.secagg.shamir import Random

Integers = NDArray[np.int64]
_SURE: Final = 2.0**64


def discrete_gaussian(sigma: float, count: int, random: Random) -> Integers:
    """``count`` integers with P(x) proportional to exp(-x^2 / (2 sigma^2)); 1 <= sigma <= 2^40."""
    if not 1 <= sigma <= 2.0**40:
        raise ValueError(f"sigma = {sigma}; take 1 to 2^40")
    bits = math.ceil(math.log2(sigma))
    found: list[Integers] = []
    while (lacking := count - sum(map(len, found))) > 0:
        x = _discrete_laplace(bits, lacking + lacking // 2 + 16, random)
        exponent = (np.abs(x) - sigma**2 / 2.0**bits) ** 2 / (2 * sigma**2)
        found.append(x[_bernoulli_exp(exponent, random)][:lacking])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _discrete_laplace(bits: int, tries: int, random: Random) -> Integers:
    """At most ``tries`` integers with P(x) proportional to exp(-|x| / 2^bits)."""
    low: Integers = np.zeros(tries, np.int64)
    if bits:
        low = (_coins(tries, random) >> np.uint64(64 - bits)).astype(np.int64)
    low = low[_bernoulli_exp(low / 2.0**bits, random)]
    x: Integers = low + (_geometric(len(low), random) << bits)
    negative = (_coins(len(x), random) >> np.uint64(63)).astype(bool)
    kept: Integers = np.where(negative, -x, x)[~(negative & (x == 0))]
    return kept


def _bernoulli_exp(exponents: NDArray[np.float64], random: Random) -> NDArray[np.bool_]:
    """True with probability exp(-exponent) each: its whole part in steps of 1/e, so that no odd is ever tiny."""
    whole = np.floor(exponents)
    enough = _geometric(len(exponents), random) >= whole
    return enough & _below(np.exp(whole - exponents), random)


def _geometric(count: int, random: Random) -> Integers:
    """How often in a row an event of probability 1/e happens."""
    runs = np.zeros(count, np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_below(np.full(len(going), math.exp(-1)), random)]
        runs[going] += 1
    return runs


def _below(odds: NDArray[np.float64], random: Random) -> NDArray[np.bool_]:
    """True with the given probabilities, to 2^-64."""
    # A float64 in [1/e, 1) times 2^64 is a whole number; 1 itself is sure, and does not fit 64 bits.
    sure = odds >= 1
    limits = (np.where(sure, 0.5, odds) * _SURE).astype(np.uint64)
    return sure | (_coins(len(odds), random) < limits)


def _coins(count: int, random: Random) -> NDArray[np.uint64]:
    return np.frombuffer(random(8 * count), "<u8")
