"""Figures of the dendrites' benchmark: what is read out of its results, and the arithmetic of its intervals.

x ± h is a mean over seeds with the half-width of its 95 % Student interval; a difference is taken seed by seed first.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tests.bench.dendrite_arms import ARMS
from tests.bench.dendrite_jobs import CORE, UNTUNED, Job

Result = dict[str, Any]
Seeds = Mapping[int, Result]
Arms = Mapping[str, Seeds]
Figure = Callable[[Result], float]


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % Student interval of a mean; nan for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Mean and interval, the mean alone of a single value, a dash of none."""
    if not values:
        return "–"
    width = half_width(values)
    return f"{np.mean(values):.{digits}f}" + ("" if np.isnan(width) else f" ± {width:.{digits}f}")


def apart(first: Seeds, second: Seeds, figure: Figure) -> list[float]:
    """The first's figure less the second's, for each seed that both have."""
    return [figure(first[seed]) - figure(second[seed]) for seed in sorted(first.keys() & second.keys())]


def side(values: Sequence[float]) -> int:
    """1 or -1 where the interval lies above or below 0, else 0."""
    width = half_width(values)
    return int(np.sign(np.mean(values))) if len(values) > 1 and abs(np.mean(values)) > width else 0


def difference(values: Sequence[float], digits: int = 2) -> str:
    """Mean and ends of the interval; bold where it leaves 0 out and the mean is not 0 in the digits shown."""
    if len(values) < 2:
        return f"{values[0]:+.{digits}f} (one seed)" if values else "–"
    mean, width = float(np.mean(values)), half_width(values)
    told = f"{mean:+.{digits}f} ({mean - width:+.{digits}f} to {mean + width:+.{digits}f})"
    return f"**{told}**" if side(values) and round(mean, digits) else told


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is words, the others are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "| --- |" + " --: |" * (len(heads) - 1), *lines]) + "\n"


class Found:
    """All results that are there, by kind, set and part, then arm, then seed."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._all: dict[tuple[str, str, str], dict[str, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
        self.seconds = 0.0
        self.where: Counter[str] = Counter()
        self.wanted: Counter[tuple[str, str]] = Counter()
        self.done: Counter[tuple[str, str]] = Counter()
        for job in jobs:
            self.wanted[job.kind, job.set] += 1
            if (result := job.result()) is not None:
                self._all[job.kind, job.set, job.part][job.arm][job.seed] = result
                self.seconds += result["seconds"]
                self.where[result["where"]] += 1
                self.done[job.kind, job.set] += 1

    def arms(self, kind: str, name: str, part: str = "") -> dict[str, dict[int, Result]]:
        """Arm by arm, in the order of ``ARMS``."""
        found = self._all.get((kind, name, part), {})
        return {arm: found[arm] for arm in ARMS if arm in found}

    def untuned(self, name: str) -> Result | None:
        """The base model on a set."""
        return self._all.get(("shipped", name, ""), {}).get(UNTUNED.name, {}).get(0)

    def parts(self, kind: str, name: str) -> list[str]:
        """The parts of a kind that have results."""
        return sorted(part for k, n, part in self._all if (k, n) == (kind, name))

    def unseen(self, name: str) -> dict[str, dict[int, Result]]:
        """The sites that were left out of training, each under its own seed: what stands here for seeds are sites."""
        arms: dict[str, dict[int, Result]] = {}
        for site in self.parts("left out", name):
            for arm, seeds in self.arms("left out", name, site).items():
                arms.setdefault(arm, {}).update(seeds)
        return {arm: arms[arm] for arm in ARMS if arm in arms}


def at(when: str, what: str) -> Figure:
    """A figure of the best epoch by dev, or of the last."""
    return lambda result: float(result[when][what])


def general(when: str) -> Figure:
    """Mean over the nine sets of STS 2012 to 2015, of the best epoch by dev, or of the last."""
    return lambda result: float(result[when]["general"]["mean"])


def last_round(split: str) -> Figure:
    """A split's figure after the last round."""
    return lambda result: float(result["curve"][-1][split])


def fallen(result: Result) -> float:
    """How far dev has fallen from its best epoch to the last."""
    return float(result["best"]["dev"] - result["last"]["dev"])


def best_epoch(result: Result) -> int:
    """The first epoch with the best dev figure, from 1."""
    dev = [look["dev"] for look in result["curve"]]
    return dev.index(max(dev)) + 1


def reached(result: Result, goal: float) -> int | None:
    """The first epoch or round, from 1, whose dev figure is at least the goal."""
    return next((i for i, look in enumerate(result["curve"], 1) if look["dev"] >= goal), None)


def reaching(arm: Seeds, linear: Seeds, short: float = 0.0) -> str:
    """Mean epochs until ``short`` of the same seed's best dev figure of ``linear``; how many seeds got there."""
    common = sorted(arm.keys() & linear.keys())
    each = [reached(arm[seed], linear[seed]["best"]["dev"] - short) for seed in common]
    there = [count for count in each if count is not None]
    return f"{shown(there, 1)} ({len(there)} of {len(common)})" if common else "–"


def chosen(arms: Arms, dev: Figure) -> str | None:
    """The candidate with the best mean dev figure, over the seeds that all main candidates have."""
    candidates = {name: seeds for name, seeds in arms.items() if ARMS[name].candidate}
    seeds = set.intersection(*(set(candidates.get(name, {})) for name in CORE if ARMS[name].candidate))
    full = {name: found for name, found in candidates.items() if seeds and found.keys() >= seeds}
    return max(full, key=lambda name: np.mean([dev(full[name][seed]) for seed in seeds])) if full else None


def parameters(seeds: Iterable[Seeds]) -> str:
    """Of an arm, over all its results; two numbers where it grew."""
    sizes = sorted({result["parameters"] for each in seeds for result in each.values()})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def kilobytes(seeds: Iterable[Seeds]) -> str:
    """In float32."""
    sizes = sorted({4 * result["parameters"] / 1000 for each in seeds for result in each.values()})
    return f"{sizes[0]:,.1f}" if len(sizes) == 1 else f"{sizes[0]:,.1f} to {sizes[-1]:,.1f}"
