"""What a plan's noise is worth: epsilon by dp-accounting, computed at the site and believed from nobody else."""

import math
from typing import Final

from nexus_common.errors import NexusError
from nexus_common.plan import Plan

LEAST_NOISE: Final = 0.5
MOST_STEPS: Final = 20_000


def epsilon(plan: Plan) -> float:
    """Record-level epsilon of all of a plan's rounds at its delta, add or remove one row (specification, "Accounting").

    Failed rounds count, on the safe side, so the rounds are those of the protocol plan.  Infinite where the noise is so
    small, or the steps so many, that the computation would take minutes to say little else.  NexusError for a plan
    without noise: it has no epsilon.
    """
    if plan.privacy is None:
        raise NexusError(f"plan {plan.name} adds no noise: epsilon: none (records are not protected)")
    noise = plan.privacy
    return epsilon_of(noise.noise, noise.sampling, plan.protocol_plans[0].rounds, noise.delta)


def epsilon_of(noise: float, sampling: float, steps: int, delta: float) -> float:
    """Of ``steps`` Poisson-subsampled Gaussians with noise multiplier ``noise`` (dp-accounting's PLD accountant)."""
    if noise < LEAST_NOISE or steps > MOST_STEPS:
        return math.inf
    import dp_accounting  # noqa: PLC0415  takes seconds to load, and few plans need it
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    step = dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise))
    return float(PLDAccountant().compose(step, steps).get_epsilon(delta))
