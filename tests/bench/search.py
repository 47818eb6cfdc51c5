"""``make bench-search``: what should a federation train?  Every idea of ``search_ideas.py``, on four sets.

First all ideas, federated, judged on dev parts (``--stage dev``); then those that are named, on test parts, pooled and
with each organisation left out too (``--stage judge --ideas ...``).  What is forgotten is judged on the dev parts of
the sets that were not trained on, and at last on STS 2012 to 2015.  A job's result is a file of ``.bench/search``, so
that the command goes on where it was stopped; all that was ever measured stands in ``tests/bench/search.jsonl``, and
its tables, at the end of ``tests/bench/RESULTS.md``, are written from it.  Hours.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from tests.bench import dendrite_jobs, dendrite_report, simulate
from tests.bench.data import require_data
from tests.bench.dendrites import code
from tests.bench.search_ideas import IDEAS
from tests.bench.search_jobs import FOLDER, Job, jobs, measured, record
from tests.bench.search_states import ALL, bank_of, loaded

DENDRITE_SEEDS = (5, 3)  # as make bench-dendrites has them


def run(job: Job, commit: str) -> float:
    """Measure, write the file whole, and say how many seconds it took."""
    torch.set_num_threads(1)
    began = time.monotonic()
    found = measured(job)
    seconds = time.monotonic() - began
    told = {"job": job.described, "code": commit, "seconds": round(seconds, 1), "where": f"torch {torch.__version__}"}
    beside = job.file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(told | found))
    beside.replace(job.file)
    return seconds


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("dev", "judge"), default="dev")
    parser.add_argument("--ideas", nargs="+", choices=list(IDEAS), help="all of them")
    parser.add_argument("--sets", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--seeds", type=int, help="2 for dev, 5 for judge")
    parser.add_argument("--tables", action="store_true", help="only write them")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    require_data()
    FOLDER.mkdir(parents=True, exist_ok=True)
    seeds = arguments.seeds or {"dev": 2, "judge": 5}[arguments.stage]
    every = list(jobs(arguments.stage, arguments.ideas or list(IDEAS), arguments.sets, seeds))
    missing = [] if arguments.tables else [job for job in every if job.result() is None]
    for name in ALL if missing else ():
        print(f"encoding {name} (once; kept in .bench/cache)", flush=True)
        simulate.encode([*loaded(name).texts.items, *bank_of(name)])
    began, commit = time.monotonic(), code()
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        running = {pool.submit(run, job, commit): job for job in missing}
        for done, future in enumerate(as_completed(running), 1):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # or the fault would be told hours later
            took = future.result()
            told = f"{running[future]}: {took:.0f} s"
            print(f"{done} of {len(missing)}, {time.monotonic() - began:.0f} s: {told}", flush=True)
    record(every)
    print(f"written: {dendrite_report.write(list(dendrite_jobs.jobs(*DENDRITE_SEEDS)))}")


if __name__ == "__main__":
    main()
