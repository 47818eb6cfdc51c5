"""``python -m tests.bench.acceptance``: which models the rule takes, by number of questions.

Simulated differences from the base model: three questions in ten gain or lose 0.2, as often one as the other but for
what makes the model better on average.  The model that is truly worse loses 3 points by rare hits: a few questions in a
hundred lose 0.8.  *best of five*: five such models, half of whose hits fall on the same questions, and the one that
looks best on these rows.  The bound is the policy's default.
"""

import numpy as np
from nexus_client.acceptance import RARE_LOSS, compare
from nexus_client.policy import Policy

SHARE, STEP, ONE_LOSS = 0.3, 0.2, 0.8
GAINS = (-0.03, 0.0, 0.03, 0.08)
ROWS = (10, 16, 32, 64, 128, 256, 500)
RUNS = 400


def models(rng: np.random.Generator, rows: int, count: int, gain: float) -> np.ndarray:
    """Differences from the base model [count, rows], of mean ``gain``."""
    up = 0.5 + max(gain, 0.0) / (2 * SHARE * STEP)
    odds = SHARE if up <= 1 else max(gain, 0.0) / STEP  # where all that move gain, more of them do
    found = np.where(rng.random((count, rows)) < min(up, 1.0), STEP, -STEP) * (rng.random((count, rows)) < odds)
    hits = max(-gain, 0.0) / ONE_LOSS
    shared, own = rng.random(rows) < hits, rng.random((count, rows)) < hits
    return found - ONE_LOSS * np.where(rng.random((count, rows)) < 0.5, shared, own)


def taken(rows: int, count: int, gain: float) -> float:
    """Percent of runs in which the best-looking of some models is taken."""
    rng, bound = np.random.default_rng([rows, count]), Policy().max_loss
    hits = 0
    for _ in range(RUNS):
        apart = models(rng, rows, count, gain)
        best = apart[apart.mean(axis=1).argmax()]
        hits += compare(best, np.zeros(rows), bound, RARE_LOSS, count).accepted
    return 100 * hits / RUNS


def main() -> None:
    """Measure and print."""
    heads = [f"{100 * gain:+.0f}" for gain in GAINS]
    print(f"percent of {RUNS} runs in which a model of this true gain, in points, is taken\n")
    print(f"| questions to choose by | {' | '.join(heads)} | {heads[0]}, best of five |")
    print(f"| --: |{' --: |' * (len(GAINS) + 1)}")
    for rows in ROWS:
        cells = [taken(rows, 1, gain) for gain in GAINS] + [taken(rows, 5, GAINS[0])]
        print(f"| {rows} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
