"""The search's part of ``tests/bench/RESULTS.md``: every idea with its reason, what dev said, what test said."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from tests.bench.dendrite_figures import difference, shown, table
from tests.bench.search_ideas import IDEAS, SHIPPED
from tests.bench.search_jobs import BASE, Job, recorded
from tests.bench.search_noise_report import noise
from tests.bench.search_states import ALL

Result = Mapping[str, Any]
Found = dict[tuple[str, str, str], dict[int, Result]]
"""By kind, set and idea, then by seed."""
WITHOUT: Final = "without distillation"
READING: Final = """\
Four sets, federated in ten rounds over their sites, updates clipped and not masked. A difference is taken seed by
seed from the shipped recipe, or from the base model; x 100, with its 95 % Student interval, bold where that leaves out
0. *kept*: what the model does on the dev parts of the three sets that it was not trained on, less the base model; the
worst of them. Ideas were chosen by dev parts alone."""


def found() -> Found:
    """All results of the record that are of the ideas as they are now."""
    told: Found = {}
    for result in recorded().values():
        job = Job(*(result["job"][name] for name in ("kind", "set", "idea", "seed", "part")))
        if (job.idea == BASE or job.idea in IDEAS) and job.result() is not None:
            told.setdefault((job.kind, job.set, job.idea), {})[job.seed] = result
    return told


def tables() -> str:
    """Nothing where nothing was measured."""
    told = found()
    if not told:
        return ""
    parts = ["# What should a federation train?", "`make bench-search`.", READING, "## On dev parts", on_dev(told)]
    judged = [idea for idea in IDEAS if any(("pooled", name, idea) in told for name in ALL)]
    if judged:
        parts += ["## On test parts", on_test(told, judged), "## An organisation left out", left_out(told, judged)]
    parts += [under] if (under := noise()) else []
    parts += ["## The ideas", "\n".join(f"- **{idea.name}**: {idea.why}." for idea in IDEAS.values())]
    return "\n\n".join(parts)


def apart(told: Found, kind: str, name: str, idea: str, part: str, other: str = SHIPPED) -> list[float]:
    """Idea less another, for each seed that both have; the base model has one for all."""
    first, second = told.get((kind, name, idea), {}), told.get((kind, name, other), {})
    if other == BASE:
        return [result[part] - second[0][part] for result in first.values()] if second else []
    return [first[seed][part] - second[seed][part] for seed in sorted(first.keys() & second.keys())]


def kept(told: Found, name: str, idea: str) -> float | None:
    """The worst mean change on the dev part of a set that was not trained on."""
    results, base = told.get(("federated", name, idea), {}), told.get(("federated", name, BASE), {}).get(0)
    if not results or base is None:
        return None
    changes = [
        float(np.mean([one["elsewhere"][other]["dev"] - base["elsewhere"][other]["dev"] for one in results.values()]))
        for other in base["elsewhere"]
    ]
    return min(changes)


def on_dev(told: Found) -> str:
    """Every idea that was tried."""
    heads = ["idea", "parameters", *(f"{name}{what}" for name in ALL for what in ("", ", kept"))]
    rows = []
    for idea in IDEAS:
        seeds = [one for name in ALL for one in told.get(("federated", name, idea), {}).values()]
        if not seeds:
            continue
        cells = [idea, f"{seeds[0]['parameters']:,}"]
        for name in ALL:
            own = told.get(("federated", name, idea), {})
            plain = shown([one["dev"] for one in own.values()])
            cells.append(plain if idea == SHIPPED else difference(apart(told, "federated", name, idea, "dev")))
            worst = kept(told, name, idea)
            cells.append("–" if worst is None else f"{worst:+.2f}")
        rows.append(cells)
    return table(heads, rows)


def on_test(told: Found, judged: Iterable[str]) -> str:
    """Those that were judged: federated, pooled, and what is left of general similarity."""
    heads = ["set, idea", "base", "pooled", "federated", "federated − pooled", f"federated − {SHIPPED}",
             f"federated − {WITHOUT}", "STS 12-15 − base"]  # fmt: skip
    rows = []
    for name in ALL:
        base = told.get(("federated", name, BASE), {}).get(0)
        for idea in judged:
            own, pooled = (told.get((kind, name, idea), {}) for kind in ("federated", "pooled"))
            both = [own[seed]["test"] - pooled[seed]["test"] for seed in sorted(own.keys() & pooled.keys())]
            rows.append([
                f"{name}, {idea}", "–" if base is None else f"{base['test']:.2f}", _mean(pooled, "test"),
                _mean(own, "test"), difference(both), difference(apart(told, "federated", name, idea, "test")),
                difference(apart(told, "federated", name, idea, "test", WITHOUT)),
                difference(apart(told, "federated", name, idea, "general", BASE)),
            ])  # fmt: skip
    return table(heads, rows)


def left_out(told: Found, judged: Iterable[str]) -> str:
    """Site by site: test questions of one that never trained."""
    heads = ["set, idea", "sites", "untuned", "federated without it", "− untuned", f"− {SHIPPED}", f"− {WITHOUT}"]
    rows = []
    for name in ALL:
        base = told.get(("federated", name, BASE), {}).get(0)
        for idea in judged:
            own = told.get(("left out", name, idea), {})
            if not own or base is None:
                continue
            untuned = {seed: base["sites"][one["job"]["part"]]["test"] for seed, one in own.items()}
            gains = [one["test"] - untuned[seed] for seed, one in own.items()]
            rows.append([
                f"{name}, {idea}", str(len(own)), shown([*untuned.values()]), _mean(own, "test"), difference(gains),
                *(difference(apart(told, "left out", name, idea, "test", other)) for other in (SHIPPED, WITHOUT)),
            ])  # fmt: skip
    return table(heads, rows)


def _mean(results: Mapping[int, Result], part: str) -> str:
    return shown([one[part] for one in results.values()])
