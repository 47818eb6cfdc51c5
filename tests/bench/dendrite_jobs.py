"""The jobs of the dendrites' benchmark: which arm on which set, in which setting, with which seed; their results."""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from nexus_common.recipe import LocalSettings

from tests.bench import dendrite_noise, dendrite_training, results, simulate
from tests.bench.dendrite_arms import ARMS, Arm
from tests.bench.dendrite_data import SETS, loaded

FOLDER: Final = simulate.CACHE.parent / "dendrites"
RECORD: Final = Path(__file__).with_name("dendrites.jsonl")
"""Every result that the tables rest on, one line a job: measured once, hours of it, wherever that was."""
EPSILONS: Final = (math.inf, 8.0, 3.0, 1.0)
RATES: Final = (3e-4, 1e-3, 3e-3)
DISTILLATIONS: Final = (0.0, 0.3, 1.0, 3.0)
CHOSEN: Final = {"salience rate": "salience_learning_rate", "distillation": "distillation"}
"""Kinds whose part is a value of that setting."""
SALIENCE_RATES: Final = (1e-4, 3e-4, 5e-4, 1e-3)
SETTINGS: Final = {
    "case study": LocalSettings(dropout=0.0, learning_rate=2.5e-4, distillation=0.0),
    "shipped": LocalSettings(distillation=0.0),
}
"""On STS-B.  The case study's is not known in full: without dropout, at the learning rate of {1, 2, 2.5, 3, 10} x 1e-4
with which the linear adapter's train loss after 30 epochs is nearest to the case study's 0.0038 (it is 0.0038).  Both
are without distillation, which is younger than these results and has jobs of its own."""
CORE: Final = (
    "linear", "two-layer linear", "linear twin", "1 dendrite", "grown dendrites", "salience", "salience + linear",
    "salience + 1 dendrite", "salience dendrite + linear", "salience twin + linear",
)  # fmt: skip
PERFORATED: Final = "1 dendrite, perforatedai"  # the same figures, so one seed shows it
NOISY: Final = ("rank 4", "rank 16", "rank 16, tanh", "linear", "1 dendrite")
UNSEEN: Final = ("linear", "two-layer linear", "1 dendrite", "salience + linear", "salience dendrite + linear")
RETRIEVAL: Final = ("medquad", "banking77")
BOTH: Final = "salience + linear"
UNTUNED: Final = Arm("untuned", "the base model")


@dataclass(frozen=True)
class Job:
    """One result.  ``kind``: a setting of STS-B, ``pooled``, ``federated``, ``masked``, ``left out``, ``noise``,
    ``salience rate`` or ``distillation``; ``part``: the site left out, epsilon and learning rate, or what is chosen.
    """

    kind: str
    set: str
    arm: str
    seed: int
    part: str = ""

    @property
    def file(self) -> Path:
        """Where its result is."""
        words = (self.set, self.kind, self.arm, self.part, str(self.seed))
        return results.file_of(FOLDER, *words)

    @property
    def described(self) -> dict[str, Any]:
        """All that its result depends on, but for the code."""
        arm = ARMS.get(self.arm, UNTUNED)
        return asdict(self) | {"layout": asdict(arm.layout), "settings": self.settings.model_dump()}

    @property
    def settings(self) -> LocalSettings:
        """How it trains."""
        settings = SETTINGS.get(self.kind, SETTINGS["shipped"])
        name = CHOSEN.get(self.kind)
        return settings.model_copy(update={name: float(self.part)}) if name else settings

    def result(self) -> dict[str, Any] | None:
        """What was measured, None where nothing was, or another job under that name."""
        return results.result_of(self, recorded())


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    """The results of the record, by the name of their file."""
    return results.read_record(RECORD)


def record(jobs: Iterable[Job]) -> None:
    """Put all results that there are into the record."""
    there = {job.file.stem: found for job in jobs if (found := job.result()) is not None}
    results.write_record(RECORD, there)


def measured(job: Job) -> dict[str, Any]:
    """Do it."""
    arm = ARMS.get(job.arm, UNTUNED)
    if arm is UNTUNED:
        return dendrite_training.untuned() if job.set == "stsb" else dendrite_training.base(job.set)
    if job.kind == "masked":
        return dendrite_training.masked(job.set, arm, job.seed)
    if job.kind == "noise":
        epsilon, rate = map(float, job.part.split())
        return dendrite_noise.noisy(arm, epsilon, rate, job.seed)
    if job.kind in SETTINGS or (job.kind in CHOSEN and job.set == "stsb"):
        return dendrite_training.epochs(arm, job.settings, job.seed)
    return dendrite_training.rounds(
        job.set, arm, job.seed, job.settings, pooled=job.kind == "pooled",
        out=job.part if job.kind == "left out" else None, elsewhere=job.kind == "distillation",
    )  # fmt: skip


def run(job: Job, commit: str) -> float:
    """Measure, write the file whole, and say how many seconds it took."""
    torch.set_num_threads(1)
    return results.measure(job, measured, commit, f"torch {torch.__version__}, {dendrite_training.DEVICE.type}")


def jobs(seeds: int, fewer: int) -> Iterator[Job]:
    """All of them, what matters most first; ``seeds`` of the main arms on STS-B, ``fewer`` of everything else.

    A site that is left out comes with a seed of its own, since what differs between sites is what such a figure spans.
    """
    ranks = [name for name in ARMS if name.startswith("rank")]
    awake = [name for name in ARMS if name.endswith("awake")]
    others = [name for name in ARMS if name not in (*CORE, *ranks, *awake, PERFORATED)]
    for name in SETS:
        yield Job("shipped", name, UNTUNED.name, 0)
    for seed in range(fewer):
        for rate in SALIENCE_RATES:
            yield from (Job("salience rate", name, BOTH, seed, str(rate)) for name in SETS)
        for weight in DISTILLATIONS:
            yield from (Job("distillation", name, BOTH, seed, str(weight)) for name in SETS)
    yield from (Job(kind, "stsb", PERFORATED, 0) for kind in SETTINGS)
    for seed in range(seeds):
        yield from (Job(kind, "stsb", name, seed) for kind in SETTINGS for name in CORE)
    fixed = [name for name in CORE if ARMS[name].grows is None]
    for seed in range(fewer):
        for kind, names in (("pooled", RETRIEVAL), ("federated", SETS)):
            yield from (Job(kind, name, arm, seed) for name in names for arm in fixed)
    for name in RETRIEVAL:
        for seed, site in enumerate(loaded(name).sites):
            yield from (Job("left out", name, arm, seed, site) for arm in UNSEEN)
    for seed in range(fewer):
        yield from (Job(kind, "stsb", name, seed) for kind in SETTINGS for name in (*awake, *others))
        yield from (Job("shipped", "stsb", name, seed) for name in ranks)
        yield from (Job("federated", name, arm, seed) for name in SETS for arm in ranks)
    yield from (Job("masked", "banking77", arm, 0) for arm in ("linear", "1 dendrite"))
    parts = [f"{epsilon} {rate}" for epsilon in EPSILONS for rate in RATES]
    for seed in range(fewer):
        yield from (Job("noise", "stsb", arm, seed, part) for arm in NOISY for part in parts)
