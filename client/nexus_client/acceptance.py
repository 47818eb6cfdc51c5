"""Whether a site takes a model: the rule, over paired scores of the rows of its hold-out, and nothing else.

A model is taken where a loss of more than ``max_loss`` has odds of at most one in ten by the paired bootstrap, and it
is not shown to be worse.  So a clear gain on 40 questions is taken although the interval is wide, what is shown to be
worse never is, and where nothing can be told a site stays with what it has.  A bootstrap knows nothing of losses so
rare that these rows have not shown them; against the base model, the floor that nothing may fall through, room is left
for those: a gain, or rows enough (57 at the default bound).  ``tests/bench/acceptance.py`` measures what that is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log, log1p
from typing import Final, Literal

import numpy as np

from nexus_client.evaluate import FEWEST_TO_TELL, Floats, resampled_means

Verdict = Literal["better", "not worse", "worse", "cannot tell"]
RISK: Final = 0.1  # the largest odds of a loss beyond max_loss
RARE_LOSS: Final = 0.5  # of the score, by each question that a rare loss hits
SURE: Final = 1.96  # standard errors either side of a 95 % interval
THE_BASE: Final = "the base model"
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


def compare(model: Floats, other: Floats, max_loss: float, rare_loss: float = 0.0, picked_of: int = 1) -> Judgement:
    """A model's scores of n rows against another's of the same; the order of the rows does not matter.

    A loss of ``rare_loss`` in a share p of all questions shows in none of n with odds (1 - p)^n; where the largest p
    for which that is ``RISK`` would make the model lose more than ``max_loss``, these rows cannot tell.  A model that
    looked best of ``picked_of`` by the same rows had as many chances to be spared (Bonferroni).
    """
    apart = np.sort(model - other)
    rows = len(apart)
    if rows < FEWEST_TO_TELL:
        return Judgement("cannot tell", float(apart.mean()) if rows else 0.0, -1.0, 1.0, rows, FEWEST_TO_TELL)
    low, likely, high = (float(end) for end in np.quantile(resampled_means(apart), [0.025, RISK, 0.975]))
    gain = float(apart.mean())
    enough = max(FEWEST_TO_TELL, ceil((SURE * float(apart.std()) / max(abs(gain), max_loss, 1e-3)) ** 2))
    verdict: Verdict = "cannot tell"
    odds = RISK / picked_of
    room = (gain + max_loss) / rare_loss if rare_loss else 1.0  # the share of questions that a rare loss may hit
    if 0 < room < 1:
        enough = max(enough, ceil(log(odds) / log1p(-room)))
    if high < 0:
        verdict = "worse"
    elif room < 1 - odds ** (1 / rows):
        verdict = "cannot tell"
    elif low > 0:
        verdict = "better"
    elif likely >= -max_loss:
        verdict = "not worse"
    return Judgement(verdict, gain, low, high, rows, enough)


def decide(model: Floats, others: Mapping[str, Floats], max_loss: float) -> Decision:
    """Whether a model may take the place of each of ``others``; the one that speaks against it most is the reason."""
    rare = {THE_BASE: RARE_LOSS}
    found = {name: compare(model, scores, max_loss, rare.get(name, 0.0)) for name, scores in others.items()}
    order = ("worse", "cannot tell", "not worse", "better")
    name, worst = min(found.items(), key=lambda one: order.index(one[1].verdict))
    return Decision(worst.accepted, worst.against(name), worst.verdict == "better")
