"""What a site reports of the model it received, as coordinates of the masked vector (specification, "The tail").

Each figure takes two: value and presence, so that the mean is over the sites that have it.  A vote takes one.  The
server sees sums over a cohort, and no figure of one site.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Figure = Literal["train_loss", "loss", "score", "questions", "vote"]
SCALE: Final[dict[str, float]] = {"train_loss": 16.0, "loss": 16.0, "score": 1.0, "questions": 4096.0}
"""The size at which a figure is cut off; ``vote`` is -1, 0 or 1 and is counted instead."""


@dataclass(frozen=True)
class Reported:
    """A figure over a cohort: mean over the sites that have it (votes: their sum), and how many these are."""

    value: float
    sites: int


def values(arms: Iterable[Mapping[str, Reported]]) -> tuple[dict[str, float], ...]:
    """What was reported of each arm, without how many sites that is of."""
    return tuple({name: one.value for name, one in arm.items()} for arm in arms)


def width(figures: Sequence[Figure]) -> int:
    """How many coordinates these figures take."""
    return sum(1 if figure == "vote" else 2 for figure in figures)


def encode(figures: Sequence[Figure], found: Mapping[str, float], limit: float) -> NDArray[np.float64]:
    """A site's coordinates, each within +-``limit``; a figure that was not found is absent."""
    out: list[float] = []
    for figure in figures:
        value = found.get(figure)
        if figure == "vote":
            out.append(float(np.sign(value or 0)))
        else:
            out += (
                [0.0, 0.0] if value is None or math.isnan(value) else [min(max(value / SCALE[figure], -1.0), 1.0), 1.0]
            )
    return limit * np.array(out, np.float64)


def decode(figures: Sequence[Figure], mean: NDArray[np.float64], limit: float, sites: int) -> dict[str, Reported]:
    """What a cohort of ``sites`` reports, from the mean of its coordinates; absent figures are left out."""
    sums, found, at = mean / limit * sites, dict[str, Reported](), 0
    for figure in figures:
        if figure == "vote":
            found[figure] = Reported(round(float(sums[at])), sites)
            at += 1
            continue
        having = round(float(sums[at + 1]))
        if 1 <= having <= sites:
            found[figure] = Reported(float(sums[at]) * SCALE[figure] / having, having)
        at += 2
    return found
