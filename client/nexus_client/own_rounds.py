"""A site's own figures of the versions it has trained on, one JSON object a line.  They stay here, for its own report.

The same figures leave in the masked sum only.  The file is bounded and its owner's alone; a line that a crash or a full
disk has cut is passed over, for a figure that is lost costs no round.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_common.wire import TrainRound

log = logging.getLogger(__name__)
MOST_BYTES: Final = 2 << 20  # several thousand rounds; half of it goes when it is full


@dataclass(frozen=True)
class OwnRound:
    """What this site found of version ``number`` of a plan (hex hash), by arm, before and in ``seconds`` of training.

    ``arms`` are empty where something went wrong and zeros were sent.
    """

    plan: str
    number: int
    stage: int
    at: float
    seconds: float
    arms: Sequence[Mapping[str, float]]


def note(path: Path, asked: TrainRound, seconds: float, arms: Sequence[Mapping[str, float]]) -> None:
    """Keep a line; where that cannot be, the log says so and the round goes on."""
    made = OwnRound(asked.run.hex(), asked.round, asked.stage, time.time(), seconds, arms)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as file:
            file.write(json.dumps(asdict(made)).encode() + b"\n")
            full = file.tell() > MOST_BYTES
        if full:
            lines = path.read_bytes().splitlines(keepends=True)
            write_durably(path, b"".join(lines[len(lines) // 2 :]))
    except (OSError, NexusError) as problem:
        log.warning("%s: version %d is not noted for this site's report: %s", path, asked.round, problem)


def read(path: Path) -> dict[str, list[OwnRound]]:
    """By plan, in the order in which plans were trained first; of a version that came again the last line counts."""
    found: dict[str, dict[int, OwnRound]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            made = OwnRound(**json.loads(line))
        except (ValueError, TypeError):
            log.debug("%s: a line is cut", path)
            continue
        found.setdefault(made.plan, {})[made.number] = made
    return {plan: [rounds[number] for number in sorted(rounds)] for plan, rounds in found.items()}
