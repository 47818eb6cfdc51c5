"""``make bench``: federated against pooled, alone, base and keyword search, on real text, with the shipped recipe.

Ten rounds, no dendrites, with and without salience; the federated figure, and the same without secure aggregation
("unmasked": a plain mean of float32 updates), over five seeds, all others over one; also with 40 training rows a site,
and with each site left out of training and judged on its questions.  Nothing here was chosen on a test split.  It takes
over an hour on two cores; ``--seeds 1 --sets stsb`` is a quick look, ``--columns federated unmasked`` that pair alone.
"""

import argparse
import functools
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from nexus_common.plan import Plan
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench import simulate
from tests.bench.data import DATASETS, Dataset, Retrieval, require_data
from tests.plans import make_plan

RESULT = Path(__file__).resolve().parents[2] / ".bench" / "quality.json"
FEW_ROWS = 40
GOALS = {"medquad": 82.5, "banking77": 70.0, "stsb": 83.5}
COLUMNS = ("federated", "unmasked", "pooled", "alone", f"federated, {FEW_ROWS} rows", f"pooled, {FEW_ROWS} rows",
           f"alone, {FEW_ROWS} rows", "left out")  # fmt: skip
SEEDED = ("federated", "unmasked")
console = Console(width=150)


def plan_of(dataset: Dataset, sites: list[str], *, salience: bool) -> Plan:
    """The shipped recipe for these sites."""
    return make_plan(sites, name="bench", rounds=10, min_cohort=len(sites), adapter={"salience": salience})


@functools.cache
def loaded(name: str) -> Dataset:
    """A data set, once a process."""
    torch.set_num_threads(1)
    return DATASETS[name]()


def figure(name: str, salience: bool, column: str, seed: int) -> float:
    """One number x 100."""
    dataset = loaded(name)
    rows = FEW_ROWS if column.endswith("rows") else None
    rng = np.random.default_rng([seed, 1])
    plan = plan_of(dataset, dataset.sites, salience=salience)
    layout = plan.adapter.layout
    tasks = {site: dataset.tasks(site, rows, rng) for site in dataset.sites}
    pooled_tasks = dataset.pooled_tasks(rows, rng)
    states = simulate.states_of(dataset.texts.items)
    embed = functools.partial(
        simulate.embed, layout, states=states, numbers=dataset.judged_texts, total=len(dataset.texts.items)
    )
    match column.split(",", maxsplit=1)[0]:
        case "base":
            return 100 * dataset.judge(embed(layout.first_vector(b"")))
        case "federated":
            return 100 * dataset.judge(embed(simulate.federated(plan, tasks, states, seed)))
        case "unmasked":
            return 100 * dataset.judge(embed(simulate.unmasked(plan, tasks, states, seed)))
        case "pooled":  # the same number of steps, each over as many rows as all sites together
            local = plan.local.model_copy(update={"batch_rows": plan.local.batch_rows * len(dataset.sites)})
            wide = plan.model_copy(update={"local": local})
            return 100 * dataset.judge(embed(simulate.alone(wide, pooled_tasks, states, [seed])))
        case "alone":
            own = {s: embed(simulate.alone(plan, tasks[s], states, [seed, i])) for i, s in enumerate(dataset.sites)}
            return 100 * dataset.judge(own)
        case "left out":
            each = []
            for out in dataset.sites:
                others = [site for site in dataset.sites if site != out]
                vector = simulate.federated(plan_of(dataset, others, salience=salience), tasks, states, seed)
                each.append(dataset.judge(embed(vector), [out]))
            return 100 * float(np.mean(each))
    raise ValueError(column)


def jobs(sets: list[str], columns: list[str], seeds: int) -> list[tuple[str, bool, str, int]]:
    """Every figure, the long ones first."""
    found = [(name, salience, column, seed) for name in sets for salience in (True, False) for column in columns
             for seed in range(seeds if column in SEEDED else 1)]  # fmt: skip
    found = [job for job in found if job[2] != "left out" or job[0] != "stsb"]
    return sorted(found, key=lambda job: (job[2] != "left out", not job[1], job[2].endswith("rows")))


def shown(values: list[float]) -> str:
    """Mean, and over several seeds their standard deviation."""
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def table(name: str, found: dict[tuple[str, bool, str], dict[int, float]], base: float, bm25: float | None) -> Table:
    """One data set's figures side by side."""
    dataset = loaded(name)
    title = f"{dataset.name}: {dataset.metric} x 100 on the test split"
    made = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for head in ("adapter", "BM25", "base", *COLUMNS):
        made.add_column(head, justify="left" if head == "adapter" else "right")
    for salience in (False, True):
        cells = [shown([*found.get((name, salience, column), {}).values()]) for column in COLUMNS]
        adapter = "salience + projection" if salience else "projection"
        made.add_row(adapter, "" if bm25 is None else f"{100 * bm25:.1f}", f"{base:.1f}", *cells)
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    arguments = parser.parse_args()
    require_data()
    began = time.monotonic()
    for name in arguments.sets:
        console.print(f"encoding {name} (once; kept in .bench/cache)")
        simulate.encode(loaded(name).texts.items)
    found: dict[tuple[str, bool, str], dict[int, float]] = {}
    work = jobs(arguments.sets, arguments.columns, arguments.seeds)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(figure, *job): job for job in work}
        for done, future in enumerate(as_completed(running), 1):
            name, salience, column, seed = running[future]
            if future.exception():
                pool.shutdown(cancel_futures=True)  # or the fault would be told an hour later
            found.setdefault((name, salience, column), {})[seed] = future.result()
            what = f"{name}, {'with' if salience else 'without'} salience, {column}, seed {seed}"
            console.print(f"{done:3} of {len(work)}, {time.monotonic() - began:5.0f} s: {what}: {future.result():.2f}")
    for name in arguments.sets:
        dataset, base = loaded(name), figure(name, False, "base", 0)
        console.print(table(name, found, base, dataset.bm25()))
        pairs = [[found.get((name, salience, column), {}) for column in SEEDED] for salience in (False, True)]
        if federated := [np.mean([*own.values()]) for own, _ in pairs if own]:
            reached = max(federated)
            verdict = "reached" if reached >= GOALS[name] else "NOT reached"
            console.print(f"goal for federated: {GOALS[name]}, {verdict} ({reached:.1f})\n")
        if apart := [abs(own[seed] - plain[seed]) for own, plain in pairs for seed in own.keys() & plain.keys()]:
            console.print(f"federated and unmasked, same seed: at most {max(apart):.2f} apart\n")
        if isinstance(dataset, Retrieval):
            console.print("left out: each site in turn, judged on its own questions; mean over sites\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({" / ".join(map(str, key)): values for key, values in found.items()}, indent=2))


if __name__ == "__main__":
    main()
