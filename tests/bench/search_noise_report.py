"""What adapters of several sizes keep under record-level noise: a table, and one figure."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tests.bench.dendrite_figures import half_width, shown, table
from tests.bench.search_jobs import BASE, Job, noise_jobs
from tests.bench.search_noise import CLIP, EPSILONS, NOISY, SAMPLING, STEPS

FIGURE: Final = Path(__file__).with_name("noise.svg")
SEEDS: Final = 5
Gains = dict[tuple[str, float], list[float]]
"""Test figure less the base model's, by arm and epsilon, over seeds."""


def gains() -> tuple[Gains, dict[str, int]]:
    """Of the learning rate that the first seed's dev chose, once all seeds of it are there; and parameters by arm."""
    base = Job("federated", "stsb", BASE, 0).result()
    told: dict[tuple[str, float, str], dict[int, float]] = {}
    parameters: dict[str, int] = {}
    for job in noise_jobs(SEEDS):
        if (found := job.result()) is not None:
            key = (job.idea, float(job.part.split()[0]), job.part)
            told.setdefault(key, {})[job.seed] = found["test"]
            parameters[job.idea] = found["parameters"]
    whole = {key: seeds for key, seeds in told.items() if len(seeds) == SEEDS}
    if base is None:
        return {}, parameters
    return {
        (a, e): [value - base["test"] for value in seeds.values()] for (a, e, _), seeds in whole.items()
    }, parameters


def noise() -> str:
    """Nothing where nothing was measured; else the section, and the figure beside it."""
    found, parameters = gains()
    if not found:
        return ""
    _draw(found, parameters)
    rows = [
        [arm, f"{parameters[arm]:,}", *(shown(found.get((arm, epsilon), [])) for epsilon in EPSILONS)]
        for arm in NOISY if arm in parameters
    ]  # fmt: skip
    words = (
        f"STS-B's test split after {STEPS} steps, less the base model; a pair in a step with probability {SAMPLING}, "
        f"gradients clipped to {CLIP}. Epsilon counts the steps alone."
    )
    heads = ("adapter", "parameters", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS))
    return "\n\n".join(["## Under record-level noise", words, table(heads, rows).rstrip(), f"![Gain]({FIGURE.name})"])


def _draw(found: Gains, parameters: dict[str, int]) -> None:
    """Gain over parameters, points for each epsilon."""
    mpl.rcParams |= {"svg.hashsalt": "nexus", "svg.fonttype": "none"}
    drawn = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = drawn.subplots()
    shift = np.geomspace(0.94, 1.06, len(EPSILONS))
    for epsilon, moved in zip(EPSILONS, shift, strict=True):
        arms = sorted((arm for arm in NOISY if (arm, epsilon) in found), key=lambda arm: parameters[arm])
        values = [found[arm, epsilon] for arm in arms]
        axes.errorbar(
            [moved * parameters[arm] for arm in arms], [float(np.mean(one)) for one in values],
            [half_width(one) for one in values], fmt="o", capsize=3,
            label="no noise" if np.isinf(epsilon) else f"epsilon {epsilon:g}",
        )  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel("STS-B test, Spearman x 100, less the base model")
    axes.legend(frameon=False)
    drawn.savefig(FIGURE, format="svg", metadata={"Date": None})
