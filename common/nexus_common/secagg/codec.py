"""Updates to integers and the sum of integers to a mean (specification, "Codecs"); float64, in the order written there.

Codec 0 is fixed point with unbiased rounding.  Codec 1 adds each site's own share of a discrete Gaussian (``noise.py``)
before masking, which wraps what becomes too large.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nexus_common.errors import Refusal
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.noise import discrete_gaussian
from nexus_common.secagg.plan import ProtocolPlan
from nexus_common.secagg.shamir import Random

_PIECE: Final = 16_384  # coordinates at a time, which stay in the processor's cache
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def weight_of(examples: int, plan: ProtocolPlan) -> int:
    """The weight of a site with at least one example: in steps of ``weight_unit``, at most ``weight_max``."""
    return min(plan.weight_max, -(-examples // plan.weight_unit))


def encode(plan: ProtocolPlan, update: Floats, weight: int, random: Random) -> Integers:
    """A site's vector [dim + 1]: the update [dim], which was clipped before, and the weight; under codec 1 with noise.

    ``random`` is the system's CSPRNG, and nothing else.  Refusal ``codec`` where a value cannot be carried.
    """
    integers = fixed_point(plan, update, weight, np.frombuffer(random(4 * plan.dim), "<u4"))
    if plan.codec == 1:
        integers[:-1] += discrete_gaussian(plan.sigma, plan.dim, random)
    return integers


def fixed_point(plan: ProtocolPlan, update: Floats, weight: int, coins: NDArray[np.uint32]) -> Integers:
    """``encode`` without noise; the uniform ``coins`` [dim] round up or down, so that the mean is unbiased."""
    if update.shape != (plan.dim,) or coins.shape != (plan.dim,) or not np.isfinite(update).all():
        raise Refusal("codec", f"an update {update.shape} with coins {coins.shape}; take {plan.dim} finite numbers")
    if not 1 <= weight <= plan.weight_max:
        raise Refusal("codec", f"weight {weight}; the plan takes 1 to {plan.weight_max}")
    scale = (weight * plan.q) / (plan.range * plan.weight_max)
    integers = np.empty(plan.dim + 1, np.int64)
    for start in range(0, plan.dim, _PIECE):
        piece = slice(start, min(start + _PIECE, plan.dim))
        z = np.clip(update[piece].astype(np.float64), -plan.range, plan.range)
        z *= scale
        z += coins[piece] * 2.0**-32
        integers[piece] = np.clip(np.floor(z, out=z), -plan.q, plan.q, out=z)
    integers[-1] = weight
    return integers


def decode(plan: ProtocolPlan, total: bytes, survivors: int) -> tuple[Floats, int]:
    """The weighted mean update [dim] and the sum of weights, of a packed sum over ``survivors`` sites.

    Refusal ``input`` where the weights are impossible: some site did not send what the codec makes.
    """
    integers = unpack_signed(total, plan.mod_bits)
    weight = int(integers[-1])
    if not survivors <= weight <= survivors * plan.weight_max:
        most = survivors * plan.weight_max
        raise Refusal("input", f"the weights of {survivors} sites sum to {weight}, not to {survivors} to {most}")
    return integers[:-1] * (plan.range * plan.weight_max / plan.q) / weight, weight
