"""Whether a site takes a model: the rule, over paired scores of the rows of its hold-out, and nothing else.

A model is taken where a loss of more than ``max_loss`` has odds of at most one in ten by the paired bootstrap, and it
is not shown to be worse.  So a clear gain on 40 questions is taken although the interval is wide, what is shown to be
worse never is, and where nothing can be told a site stays with what it has.  On few rows a bootstrap knows nothing of
rare losses that they have not shown: ``tests/bench/acceptance.py`` says how often that lets a worse model pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

import numpy as np

from nexus_client.evaluate import FEWEST_TO_TELL, Floats, resampled_means

Verdict = Literal["better", "not worse", "worse", "cannot tell"]
RISK: Final = 0.1  # the largest odds of a loss beyond max_loss
SURE: Final = 1.96  # standard errors either side of a 95 % interval
VOTES: Final[dict[Verdict, float]] = {"better": 1.0, "not worse": 0.0, "worse": -1.0, "cannot tell": 0.0}


@dataclass(frozen=True)
class Judgement:
    """How a model does against another over the same rows: mean gain of the score (0 to 1) with its 95 % interval.

    ``enough`` rows would tell a gain of this size, or of ``max_loss`` where it is smaller.
    """

    verdict: Verdict
    gain: float
    low: float
    high: float
    rows: int
    enough: int

    @property
    def accepted(self) -> bool:
        """Whether the model may take the other's place."""
        return self.verdict in ("better", "not worse")

    @property
    def vote(self) -> float:
        """1 shown to be better, -1 shown to be worse, else 0."""
        return VOTES[self.verdict]

    def against(self, other: str) -> str:
        """In words; scores x 100."""
        if not self.rows:
            return f"cannot tell against {other}: no question to choose by"
        gain, low, high = (f"{100 * value:+.1f}" for value in (self.gain, self.low, self.high))
        if self.rows < FEWEST_TO_TELL:
            return f"cannot tell against {other}, {self.rows} questions: it takes {FEWEST_TO_TELL} or more ({gain})"
        told = f"{gain}, {low} to {high}, {self.rows} questions"
        if self.verdict == "cannot tell":
            return f"cannot tell against {other}, {self.rows} questions: about {self.enough} would tell ({told})"
        return f"{self.verdict} than {other} ({told})"


@dataclass(frozen=True)
class Decision:
    """Whether a model is taken, and why or why not; ``better`` than all that it was held against."""

    accepted: bool
    reason: str
    better: bool = False


def compare(model: Floats, other: Floats, max_loss: float) -> Judgement:
    """A model's scores of n rows against another's of the same; neither depends on the order of the rows."""
    apart = np.sort(model - other)
    rows = len(apart)
    if rows < FEWEST_TO_TELL:
        return Judgement("cannot tell", float(apart.mean()) if rows else 0.0, -1.0, 1.0, rows, FEWEST_TO_TELL)
    low, likely, high = (float(end) for end in np.quantile(resampled_means(apart), [0.025, RISK, 0.975]))
    gain = float(apart.mean())
    enough = max(FEWEST_TO_TELL, ceil((SURE * float(apart.std()) / max(abs(gain), max_loss, 1e-3)) ** 2))
    verdict: Verdict = "cannot tell"
    if high < 0:
        verdict = "worse"
    elif low > 0:
        verdict = "better"
    elif likely >= -max_loss:
        verdict = "not worse"
    return Judgement(verdict, gain, low, high, rows, enough)


def decide(model: Floats, others: Mapping[str, Floats], max_loss: float) -> Decision:
    """Whether a model may take the place of each of ``others``; the one that speaks against it most is the reason."""
    found = {name: compare(model, scores, max_loss) for name, scores in others.items()}
    order = ("worse", "cannot tell", "not worse", "better")
    name, worst = min(found.items(), key=lambda one: order.index(one[1].verdict))
    return Decision(worst.accepted, worst.against(name), worst.verdict == "better")
