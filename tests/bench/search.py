"""``make bench-search``: what should a federation train?  Every idea of ``search_ideas.py``, on four sets.

First all ideas, federated, judged on dev parts (``--stage dev``); then those that are named, on test parts, pooled and
with each organisation left out too (``--stage judge --ideas ...``).  What is forgotten is judged on the dev parts of
the sets that were not trained on, and at last on STS 2012 to 2015.  ``--stage noise`` asks what adapters of several
sizes keep under record-level noise.  A job's result is a file of ``.bench/search``, so
that the command goes on where it was stopped; all that was ever measured stands in ``tests/bench/search.jsonl``, and
its tables, at the end of ``tests/bench/RESULTS.md``, are written from it.  Hours.
"""

import argparse
import os

import torch

from tests.bench import dendrite_jobs, dendrite_report, results, simulate
from tests.bench.data import require_data
from tests.bench.search_ideas import IDEAS
from tests.bench.search_jobs import FOLDER, NOISE, Job, jobs, measured, noise_jobs, record
from tests.bench.search_states import ALL, bank_of, loaded

DENDRITE_SEEDS = (5, 3)  # as make bench-dendrites has them


def run(job: Job, commit: str) -> float:
    """Measure, write the file whole, and say how many seconds it took."""
    torch.set_num_threads(1)
    return results.measure(job, measured, commit, f"torch {torch.__version__}")


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("dev", "judge", NOISE), default="dev")
    parser.add_argument("--ideas", nargs="+", choices=list(IDEAS), help="all of them")
    parser.add_argument("--sets", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--seeds", type=int, help="2 for dev, 5 for judge and noise")
    parser.add_argument("--tables", action="store_true", help="only write them")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    require_data()
    FOLDER.mkdir(parents=True, exist_ok=True)
    seeds = arguments.seeds or {"dev": 2, "judge": 5, NOISE: 5}[arguments.stage]

    def every() -> list[Job]:
        if arguments.stage == NOISE:
            return list(noise_jobs(seeds))
        return list(jobs(arguments.stage, arguments.ideas or list(IDEAS), arguments.sets, seeds))

    def missing() -> list[Job]:
        return [] if arguments.tables else [job for job in every() if job.result() is None]

    for name in ALL if missing() else ():
        print(f"encoding {name} (once; kept in .bench/cache)", flush=True)
        simulate.encode([*loaded(name).texts.items, *bank_of(name)])
    while found := missing():  # some follow from others
        results.measure_all(run, found, arguments.workers)
    record(every())
    print(f"written: {dendrite_report.write(list(dendrite_jobs.jobs(*DENDRITE_SEEDS)))}")


if __name__ == "__main__":
    main()
