"""Results of a benchmark's jobs: a file each as they are measured, so that it goes on where it was stopped; a record.

A job is a dataclass with ``file`` and ``described``: all that its result depends on, but for the code.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.bench import simulate

Result = dict[str, Any]


def file_of(folder: Path, *words: str) -> Path:
    """A job's file, named by its words."""
    return folder / ("_".join(re.sub(r"[^a-z0-9.]+", "-", word.lower()) for word in words if word) + ".json")


def result_of(job: Any, recorded: Mapping[str, Result]) -> Result | None:
    """What was measured, None where nothing was, or another job under that name."""
    kept = json.loads(job.file.read_text()) if job.file.exists() else recorded.get(job.file.stem)
    return kept if kept is not None and kept["job"] == job.described else None


def read_record(record: Path) -> dict[str, Result]:
    """The results of a record, by the name of their file."""
    lines = record.read_text().splitlines() if record.exists() else []
    return {name: found for line in lines for name, found in json.loads(line).items()}


def write_record(record: Path, there: Mapping[str, Result]) -> None:
    """One line a result."""
    record.write_text("".join(json.dumps({name: there[name]}, separators=(",", ":")) + "\n" for name in sorted(there)))


def measure(job: Any, measured: Callable[[Any], Result], commit: str, where: str) -> float:
    """Measure, write the file whole, and say how many seconds it took."""
    began = time.monotonic()
    found = measured(job)
    seconds = time.monotonic() - began
    told = {"job": job.described, "code": commit, "seconds": round(seconds, 1), "where": where}
    beside = job.file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(told | found))
    beside.replace(job.file)
    return seconds


def measure_all(run: Callable[[Any, str], float], missing: Sequence[Any], workers: int | None) -> None:
    """``run`` each in processes of their own, and say how far it is."""
    began, commit = time.monotonic(), code()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:  # CUDA allows no fork
        running = {pool.submit(run, job, commit): job for job in missing}
        for done, future in enumerate(as_completed(running), 1):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # or the fault would be told hours later
            took = future.result()
            told = " / ".join(map(str, asdict(running[future]).values())).rstrip(" /")
            print(f"{done} of {len(missing)}, {time.monotonic() - began:.0f} s: {told}: {took:.0f} s", flush=True)


def code() -> str:
    """The commit that measures, with + where files have changed since."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=simulate.CACHE.parents[1],
                           capture_output=True, text=True, check=False)  # fmt: skip
    return found.stdout.strip() or "unknown"
