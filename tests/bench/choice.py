"""``make bench-choice``: what a site uses once it has chosen, against each of the models that it could have used.

As at a site: it trains on its own train questions, chooses by a fifth of them that was set apart (``dev``), searches
its own documents, and is judged on test questions, which nothing was chosen on.  Rule, candidates and choice are the
product's own.  Then what the shipped default forgets: STS 2012 to 2015, and the domain that it never saw.
``--rows 40`` gives each site so many training questions, and a quarter as many to choose by, as its own split would.
``--quick`` is a look in minutes: three sites, few rows and rounds; its figures say nothing.
"""

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from nexus_client.cache import Cache
from nexus_client.choice import best_of
from nexus_client.embed import CachedStates, default_base
from nexus_client.evaluate import Floats, difference, quality, vector_scores
from nexus_client.material import Task
from nexus_client.personal import candidates
from nexus_client.train import local_update
from nexus_client.workspace import Readied
from nexus_common.base_model import base_hash
from nexus_common.layout import Layout, Vector
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench import simulate
from tests.bench.data import Retrieval, require_data
from tests.bench.dendrite_data import Similarity
from tests.bench.dendrite_data import loaded as set_of
from tests.plans import make_plan

RESULT = Path(__file__).resolve().parents[2] / ".bench" / "choice.json"
SETS: Final = ("medquad", "banking77")
MAX_LOSS: Final = 0.02  # as policy.toml comes
MAX_FORGOTTEN: Final = 0.5
MODELS: Final = ("base", "alone", "federated", "personal")
BASE_ADAPTER: Final = (Layout(), Layout().first_vector(b""))
Adapter = tuple[Layout, Vector] | None
console = Console(width=150)


@dataclass(frozen=True)
class Site:
    """A site's outcome: test scores of each question by model, and which of them was chosen on dev questions."""

    site: str
    seed: int
    choosing: int
    chosen: str
    personal: int  # which of the candidates
    scores: dict[str, list[float]]

    def means(self) -> dict[str, float]:
        """nDCG@10 x 100 of each model, and of the chosen one."""
        found = {model: 100 * float(np.mean(rows)) for model, rows in self.scores.items()}
        return found | {"chosen": found[self.chosen]}


@functools.cache
def cache() -> Cache:
    """What ``encode`` left; LMDB is opened once a process."""
    return Cache(simulate.CACHE / base_hash(default_base())[:16])


@functools.cache
def states(name: str) -> CachedStates:
    """A set's frozen states."""
    return CachedStates(cache(), set_of(name).texts.items)


def retrieval(name: str) -> Retrieval:
    """A set with its dev split."""
    data = set_of(name)
    assert isinstance(data, Retrieval)
    return data


def scores(name: str, site: str, split: str, adapters: Sequence[Adapter], most: int | None = None) -> list[Floats]:
    """nDCG@10 of each question of a site's split over the site's own documents, for each adapter; None is the base."""
    data = retrieval(name)
    documents = np.unique(data.documents[site])
    place = {int(number): i for i, number in enumerate(documents)}
    right = {
        q.text: np.array([place[d] for d in q.right if d in place], np.int64)
        for q in data.questions[split][site][:most]
    }
    asked = np.array([text for text, places in right.items() if len(places)], np.int64)
    found = []
    for adapter in adapters:
        layout, vector = adapter or BASE_ADAPTER
        numbers = np.unique(np.concatenate([asked, documents]))
        embedded = simulate.embed(layout, vector, states(name), numbers, len(data.texts.items))
        found.append(vector_scores(embedded[asked], embedded[documents], [right[int(q)] for q in asked]).ndcg10)
    return found


def alone(
    plan: Plan, name: str, site: str, tasks: list[Task], seed: Sequence[int], choosing: int | None
) -> StoredAdapter:
    """As ``train --local``: of all rounds the one that the choosing part likes best."""
    layout, rng = plan.adapter.layout, np.random.default_rng(seed)
    vectors = [layout.first_vector(plan.adapter.seed_bytes)]
    for _ in range(plan.rounds):
        vectors.append(vectors[-1] + local_update(layout, vectors[-1], tasks, states(name), plan.local, rng))
    found = scores(name, site, "dev", [(layout, vector) for vector in vectors], choosing)
    best = int(np.argmax([rows.mean() for rows in found]))
    return StoredAdapter(plan, best, vectors[best], layout)


def site_of(
    plan: Plan, name: str, site: str, version: StoredAdapter, tasks: list[Task], seed: int, choosing: int | None
) -> Site:
    """What a site makes of a version, chooses on dev and has of it on test."""
    own = alone(plan, name, site, tasks, [seed, plan.names.index(site)], choosing)
    rivals = [*candidates(site, Readied(tasks, [], states(name)), version, own)]
    adapters = [None, *((one.layout, one.vector) for one in (own, version)), *rivals]
    on_dev = scores(name, site, "dev", adapters, choosing)
    at = int(np.argmax([rows.mean() for rows in on_dev[3:]]))
    on_dev = [*on_dev[:3], on_dev[3 + at]]
    best = best_of(dict(zip(MODELS, on_dev, strict=True)), MAX_LOSS, len(MODELS) - 1 + len(rivals) - 1)
    on_test = scores(name, site, "test", [*adapters[:3], rivals[at]])
    rows = {model: found.tolist() for model, found in zip(MODELS, on_test, strict=True)}
    return Site(site, seed, len(on_dev[0]), best.name, at, rows)


def outcome(name: str, seed: int, rows: int | None, *, quick: bool) -> dict[str, Any]:
    """One federation, its sites, and what its version has forgotten."""
    torch.set_num_threads(1)
    data, rng = retrieval(name), np.random.default_rng([seed, 1])
    sites = data.sites[:3] if quick else data.sites
    plan = make_plan(sites, name="bench", rounds=2 if quick else 10, min_cohort=len(sites))
    tasks = {site: data.tasks(site, rows, rng) for site in sites}
    layout = plan.adapter.layout
    version = StoredAdapter(plan, plan.rounds, simulate.federated(plan, tasks, states(name), seed), layout)
    choosing = None if rows is None else max(1, rows // 4)
    found = [site_of(plan, name, site, version, tasks[site], seed, choosing) for site in sites]
    (other,) = {*SETS} - {name}
    others = retrieval(other).sites[:2] if quick else retrieval(other).sites
    before_after = [None, (layout, version.vector)]
    elsewhere = np.array([[rows.mean() for rows in scores(other, site, "test", before_after)] for site in others])
    return {
        "name": name, "seed": seed, "rows": rows, "sites": [asdict(site) for site in found],
        "general": [_general(adapter) for adapter in before_after],
        "other": [100 * float(mean) for mean in elsewhere.mean(axis=0)],
    }  # fmt: skip


def _general(adapter: Adapter) -> float:
    similarity = set_of("stsb")
    assert isinstance(similarity, Similarity)
    layout, vector = adapter or BASE_ADAPTER
    total = len(similarity.texts.items)
    embed = functools.partial(simulate.embed, layout, vector, states("stsb"), total=total)
    return similarity.general_similarity(embed)["mean"]


def told(site: Site) -> list[str]:
    """A row of the table: figures, and how the chosen model stands to each of the others."""
    means = site.means()
    chosen = np.array(site.scores[site.chosen])
    apart = {model: difference("nDCG@10", chosen, np.array(site.scores[model])) for model in MODELS}
    against = [f"{100 * one.mean:+.1f}{'*' if one.verdict == 'worse' else ''}" for one in apart.values()]
    interval = quality("nDCG@10", chosen)
    cells = [f"{means[model]:.1f}" for model in MODELS]
    shown = f"{means['chosen']:.1f} ({100 * interval.low:.0f}-{100 * interval.high:.0f})"
    return [site.site, str(site.choosing), str(len(chosen)), *cells, shown, site.chosen, *against]


def table(name: str, sites: list[Site]) -> Table:
    """One set, one seed; the mean of the sites below."""
    made = Table(
        title=f"{name}: nDCG@10 x 100 on test questions, own documents", title_justify="left", box=box.MARKDOWN
    )
    heads = ("site", "dev", "test", *MODELS, "chosen", "which", *(f"chosen - {model}" for model in MODELS))
    for head in heads:
        made.add_column(head, justify="left" if head in ("site", "which") else "right")
    for site in sites:
        made.add_row(*told(site))
    means = [site.means() for site in sites]
    mean = {model: float(np.mean([one[model] for one in means])) for model in (*MODELS, "chosen")}
    apart = [f"{mean['chosen'] - mean[model]:+.2f}" for model in MODELS]
    made.add_row("mean", "", "", *(f"{mean[model]:.2f}" for model in (*MODELS, "chosen")), "", *apart)
    return made


def verdicts(found: list[dict[str, Any]]) -> None:
    """The goals, over all seeds."""
    for name in SETS:
        runs = [one for one in found if one["name"] == name]
        if not runs:
            continue
        sites = [Site(**site) for one in runs for site in one["sites"]]
        lost = [
            (site.site, site.seed, model)
            for site in sites
            for model in MODELS
            if difference("", np.array(site.scores[site.chosen]), np.array(site.scores[model])).verdict == "worse"
        ]
        console.print(f"{name}: chosen is shown to be worse than another model at {lost or 'no site'}", markup=False)
        mean = {m: float(np.mean([site.means()[m] for site in sites])) for m in (*MODELS, "chosen")}
        above = mean["chosen"] > max(mean["alone"], mean["federated"])
        told_means = ", ".join(f"{model} {value:.2f}" for model, value in mean.items())
        console.print(
            f"mean over sites and seeds: {told_means}: {'above' if above else 'NOT above'} alone and federated"
        )
        for what, key in (("STS 2012 to 2015", "general"), ("the other domain", "other")):
            before, after = (float(np.mean([one[key][i] for one in runs])) for i in (0, 1))
            verdict = "kept" if after >= before - MAX_FORGOTTEN else f"NOT kept (more than {MAX_FORGOTTEN} lost)"
            console.print(f"{what}: {before:.2f} with the base model, {after:.2f} federated: {verdict}")
        console.print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="training questions a site")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    require_data()
    began = time.monotonic()
    for name in (*SETS, "stsb"):
        console.print(f"encoding {name} (once; kept in .bench/cache)")
        simulate.encode(set_of(name).texts.items)
    seeds, rows = (1, 60) if arguments.quick else (arguments.seeds, arguments.rows)
    found: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = [(name, seed) for seed in range(seeds) for name in arguments.sets]
        jobs = [pool.submit(outcome, *one, rows, quick=arguments.quick) for one in work]
        for done, future in enumerate(as_completed(jobs), 1):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            found.append(future.result())
            console.print(f"{done} of {len(jobs)}, {time.monotonic() - began:.0f} s")
    for one in sorted(found, key=lambda one: (one["name"], one["seed"])):
        console.print(table(f"{one['name']}, seed {one['seed']}", [Site(**site) for site in one["sites"]]))
    console.print("* shown to be worse than that model\n")
    verdicts(found)
    if not arguments.quick:
        RESULT.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
