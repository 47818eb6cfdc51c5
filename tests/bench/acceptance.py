"""``python -m tests.bench.acceptance``: how often the rule takes a model that is truly worse, by number of questions.

Simulated scores: each question loses or gains nothing but for a few in a hundred, which lose 0.8, so that the model
loses 3 points on average; the bound is the policy's default.  *best of five*: five such models, half of whose losses
fall on the same questions, and the one that looks best on these rows is held against the base model on the same rows.
"""

import numpy as np
from nexus_client.acceptance import RARE_LOSS, compare
from nexus_client.policy import Policy

TRUE_LOSS, ONE_LOSS = 0.03, 0.8
ROWS = (10, 16, 32, 64, 128, 256)
RUNS = 400


def models(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Differences from the base model [count, rows]."""
    odds = TRUE_LOSS / ONE_LOSS
    shared, own = rng.random(rows) < odds, rng.random((count, rows)) < odds
    return np.where(rng.random((count, rows)) < 0.5, shared, own) * -ONE_LOSS


def taken(rows: int, count: int) -> float:
    """Percent of runs in which the best-looking of some models is taken."""
    rng, bound = np.random.default_rng([rows, count]), Policy().max_loss
    hits = 0
    for _ in range(RUNS):
        apart = models(rng, rows, count)
        best = apart[apart.mean(axis=1).argmax()]
        hits += compare(best, np.zeros(rows), bound, RARE_LOSS, count).accepted
    return 100 * hits / RUNS


def main() -> None:
    """Measure and print."""
    print(f"a model that truly loses {100 * TRUE_LOSS:.0f} points, {RUNS} runs: taken, %\n")
    print("| questions to choose by | one model | best of five |\n| --: | --: | --: |")
    for rows in ROWS:
        print(f"| {rows} | {taken(rows, 1):.0f} | {taken(rows, 5):.0f} |")


if __name__ == "__main__":
    main()
