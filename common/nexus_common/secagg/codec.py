"""Updates to integers and the sum of integers to a mean (specification, "Codecs"); float64, in the order written there.

Codec 0 is fixed point with unbiased rounding.  Codec 1 adds each site's own share of a discrete Gaussian (``noise.py``)
before masking, and wraps instead of clamping.
"""

import math

import numpy as np
from numpy.typing import NDArray

from nexus_common.errors import Refusal
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.plan import ProtocolPlan

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def weight_of(examples: int, plan: ProtocolPlan) -> int:
    """A site's weight: its examples in steps of ``weight_unit``, at most ``weight_max``."""
    return min(plan.weight_max, math.ceil(examples / plan.weight_unit))


def clipped(update: Floats, clip: float) -> Floats:
    """The update, scaled down to L2 norm ``clip`` where it is longer."""
    norm = float(np.linalg.norm(update))
    return update if norm <= clip else update * (clip / norm)


def encode(plan: ProtocolPlan, update: Floats, weight: int, coins: NDArray[np.uint32]) -> Integers:
    """Fixed point [dim + 1] of an update [dim] that was clipped before; the last coordinate is the weight.

    ``coins`` [dim] are uniform, from the system's CSPRNG: they round up or down, so that the mean is unbiased.
    Refusal ``codec`` where a value is not finite or the plan's range cannot carry it.
    """
    q = 2 ** (plan.value_bits - 1) - 1
    scale = (weight * q) / (plan.range * plan.weight_max)
    if update.shape != (plan.dim,) or not np.isfinite(update).all() or not math.isfinite(plan.range * scale):
        raise Refusal("codec", f"an update {update.shape} at scale {scale}: take {plan.dim} finite numbers, more range")
    z = np.minimum(np.maximum(update, -plan.range), plan.range) * scale
    x = np.clip(np.floor(z + coins * 2.0**-32), -q, q)
    return np.append(x, weight).astype(np.int64)


def sigma(plan: ProtocolPlan) -> float:
    """Codec 1: standard deviation of each site's own noise, in integer units."""
    q = 2 ** (plan.value_bits - 1) - 1
    delta: float = plan.clip * (q / plan.range) + math.sqrt(plan.dim)
    return plan.noise * delta / math.sqrt(plan.honest)


def decode(plan: ProtocolPlan, total: bytes, survivors: int) -> tuple[Floats, int]:
    """The weighted mean update [dim] and the sum of weights, of a packed sum over ``survivors`` sites.

    Refusal ``input`` where the weights are impossible: some site did not send what the codec makes.
    """
    integers = unpack_signed(total, plan.mod_bits)
    weight = int(integers[-1])
    if not survivors <= weight <= survivors * plan.weight_max:
        most = survivors * plan.weight_max
        raise Refusal("input", f"the weights of {survivors} sites sum to {weight}, not to {survivors} to {most}")
    q = 2 ** (plan.value_bits - 1) - 1
    return integers[:-1] * (plan.range * plan.weight_max / q) / weight, weight
