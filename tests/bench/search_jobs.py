"""The jobs of the search: one idea on one set with one seed, and what was measured of it."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.bench import results, simulate
from tests.bench.data import Retrieval
from tests.bench.dendrite_data import Similarity
from tests.bench.dendrite_noise import CLIP, SAMPLING, STEPS
from tests.bench.search_ideas import IDEAS, SHIPPED
from tests.bench.search_models import Model
from tests.bench.search_noise import EPSILONS, NOISY, RATES, noisy
from tests.bench.search_states import ALL, loaded, states_of
from tests.bench.search_training import embed, plan_of, trained

FOLDER: Final = simulate.CACHE.parent / "search"
RECORD: Final = Path(__file__).with_name("search.jsonl")
NOISE: Final = "noise"
BASE: Final = "base"
"""In the place of an idea: the base model."""


@dataclass(frozen=True)
class Job:
    """One result.  ``kind``: ``federated``, ``pooled`` or ``left out``, where ``part`` is the site; ``noise``, where
    ``idea`` is an arm of ``search_noise.py`` and ``part`` epsilon and learning rate.
    """

    kind: str
    set: str
    idea: str
    seed: int
    part: str = ""

    @property
    def file(self) -> Path:
        """Where its result is."""
        words = (self.set, self.kind, self.idea, self.part, str(self.seed))
        return results.file_of(FOLDER, *words)

    @property
    def described(self) -> dict[str, Any]:
        """All that its result depends on, but for the code."""
        if self.kind == NOISE:
            return asdict(self) | asdict(NOISY[self.idea]) | {"steps": STEPS, "sampling": SAMPLING, "clip": CLIP}
        if self.idea == BASE:
            return asdict(self)
        plan, idea = plan_of(IDEAS[self.idea], sites_of(self.set), self.seed), IDEAS[self.idea]
        settings = {"local": plan.local.model_dump(), "server": plan.server.model_dump(), "rounds": plan.rounds}
        return json.loads(json.dumps(asdict(self) | idea.described | settings))  # type: ignore[no-any-return]

    def result(self) -> dict[str, Any] | None:
        """What was measured, None where nothing was, or another job under that name."""
        return results.result_of(self, recorded())


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    """The results of the record, by the name of their file."""
    return results.read_record(RECORD)


def record(jobs: Iterable[Job]) -> None:
    """Add the results that there are to the record."""
    there = recorded() | {job.file.stem: found for job in jobs if (found := job.result()) is not None}
    results.write_record(RECORD, there)
    recorded.cache_clear()


def sites_of(name: str) -> list[str]:
    """Of a set."""
    return list(loaded(name).sites)


def jobs(stage: str, ideas: Sequence[str], sets: Sequence[str], seeds: int) -> Iterator[Job]:
    """All of a stage's; what every other is compared with comes first.

    A site that is left out comes with a seed of its own, since what differs between sites is what such a figure spans.
    """
    ordered = sorted(ideas, key=lambda name: name != SHIPPED)
    yield from (Job("federated", name, BASE, 0) for name in sets)
    for seed in range(seeds):
        yield from (Job("federated", name, idea, seed) for idea in ordered for name in sets)
        if stage == "judge":
            yield from (Job("pooled", name, idea, seed) for idea in ordered for name in sets)
    if stage == "judge":
        for name in sets:
            data = loaded(name)
            sites = data.sites if isinstance(data, Retrieval) else []
            yield from (Job("left out", name, idea, i, site) for i, site in enumerate(sites) for idea in ordered)


def noise_jobs(seeds: int) -> Iterator[Job]:
    """Every rate with the first seed; the best of them by its dev figure, once all are known, with the others."""
    for arm in NOISY:
        for epsilon in EPSILONS:
            tried = [Job(NOISE, "stsb", arm, 0, f"{epsilon} {rate}") for rate in RATES]
            yield from tried
            found = {job.part: told["dev"] for job in tried if (told := job.result()) is not None}
            if len(found) == len(tried):
                best = max(found, key=lambda part: found[part])
                yield from (Job(NOISE, "stsb", arm, seed, best) for seed in range(1, seeds))


def measured(job: Job) -> dict[str, Any]:
    """Do it: figures x 100 on the set's own parts, on those of the other sets, and of general similarity."""
    if job.kind == NOISE:
        epsilon, rate = map(float, job.part.split())
        return noisy(NOISY[job.idea], epsilon, rate, job.seed)
    states = states_of(job.set)
    if job.idea == BASE:
        model = IDEAS["projection alone"].model(b"")
    else:
        out = job.part or None
        model = trained(IDEAS[job.idea], job.set, states, job.seed, pooled=job.kind == "pooled", out=out)
    if job.kind == "left out":
        return judged(model, job.set, [job.part])
    sites = loaded(job.set).sites if job.idea == BASE and isinstance(loaded(job.set), Retrieval) else []
    own = {site: judged(model, job.set, [site]) for site in sites}
    elsewhere = {name: judged(model, name) for name in ALL if name != job.set}
    parameters = sum(one.numel() for one in model.parameters())
    return (
        judged(model, job.set)
        | {"elsewhere": elsewhere, "general": general(model), "parameters": parameters}
        | ({"sites": own} if own else {})
    )


def judged(model: Model, name: str, sites: list[str] | None = None) -> dict[str, float]:
    """Both judged parts of a set, of its own sites or of some."""
    data = loaded(name)
    vectors = _embedded(model, name, data.judged_texts)
    return {part: 100 * data.judge(vectors, sites, part) for part in ("dev", "test")}


def general(model: Model) -> float:
    """STS 2012 to 2015, mean over the nine sets."""
    data = loaded("stsb")
    if not isinstance(data, Similarity):
        raise TypeError("general similarity comes with STS-B")
    return data.general_similarity(lambda numbers: _embedded(model, "stsb", numbers))["mean"]


def _embedded(model: Model, name: str, numbers: np.ndarray) -> np.ndarray:
    return embed(model, states_of(name), numbers, len(loaded(name).texts.items))
