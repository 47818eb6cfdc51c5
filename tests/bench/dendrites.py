"""``make bench-dendrites``: do dendrites help?  Every arm of ``dendrite_arms.py``, on three sets, seed by seed.

One job is one arm on one set in one setting with one seed; its result is a file of ``.bench/dendrites``, so that the
command goes on where it was stopped, and begins a job anew whose description has changed.  What was measured anywhere
before stands in ``tests/bench/dendrites.jsonl``; the tables, ``tests/bench/RESULTS.md``, are written from both alone
(``--tables`` does nothing else).  Nothing is chosen on a
test split.  ``--quick`` is one seed of STS-B; all of it takes hours.
"""

import argparse
import os

from tests.bench import results, simulate
from tests.bench.data import require_data
from tests.bench.dendrite_data import SETS, loaded
from tests.bench.dendrite_jobs import FOLDER, RECORD, SETTINGS, jobs, record, run
from tests.bench.dendrite_report import write


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of the main arms on STS-B")
    parser.add_argument("--fewer-seeds", type=int, default=3, help="of all else")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of job")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), help="only these sets")
    parser.add_argument("--quick", action="store_true", help="one seed of STS-B")
    parser.add_argument("--tables", action="store_true", help="write RESULTS.md from what is there")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    require_data()
    FOLDER.mkdir(parents=True, exist_ok=True)
    every = list(jobs(arguments.seeds, arguments.fewer_seeds))
    wanted = [job for job in every if job.kind in (arguments.kinds or {job.kind for job in every})]
    wanted = [job for job in wanted if job.set in (arguments.sets or SETS)]
    if arguments.quick:
        wanted = [job for job in wanted if job.kind in SETTINGS and job.set == "stsb" and job.seed == 0]
    missing = [] if arguments.tables else [job for job in wanted if job.result() is None]
    for name in dict.fromkeys(job.set for job in missing):
        print(f"encoding {name} (once; kept in .bench/cache)", flush=True)
        simulate.encode(loaded(name).texts.items)
    results.measure_all(run, missing, arguments.workers)
    record(every)
    print(f"written: {write(every)}, {RECORD}")


if __name__ == "__main__":
    main()
