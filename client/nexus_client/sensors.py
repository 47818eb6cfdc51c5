"""Temperatures and power as Linux tells them, the GPU's memory as torch does; a sensor that is not there is left out.

A board such as a Jetson has its zones and rails here.  Of a graphics card with NVIDIA's own driver Linux tells neither
(NVIDIA's exporter does).
"""

import re
import sys
from itertools import chain, count
from pathlib import Path
from typing import Final

THERMAL: Final = Path("/sys/class/thermal")
MONITORS: Final = Path("/sys/class/hwmon")


def temperatures(folder: Path = THERMAL) -> dict[str, float]:
    """Degrees Celsius by zone."""
    found: dict[str, float] = {}
    for zone in sorted(folder.glob("thermal_zone*")):
        if (value := _number(zone / "temp")) is not None:
            found[_free(_word(zone / "type") or zone.name, found)] = value / 1e3
    return found


def powers(folder: Path = MONITORS) -> dict[str, float]:
    """Watts by rail: measured as such, or the product of a channel's voltage and current (INA3221)."""
    found: dict[str, float] = {}
    for monitor in sorted(folder.glob("hwmon*")):
        chip = _word(monitor / "name") or monitor.name
        for file in sorted((*monitor.glob("power*_input"), *monitor.glob("power*_average"))):
            if (value := _number(file)) is not None:
                channel = file.name.partition("_")[0]
                found[_free(_word(monitor / f"{channel}_label") or f"{chip}-{channel}", found)] = value / 1e6
        for file in sorted(monitor.glob("curr*_input")):
            channel = file.name.removeprefix("curr").removesuffix("_input")
            current, voltage = _number(file), _number(monitor / f"in{channel}_input")
            if current is not None and voltage is not None:
                name = _word(monitor / f"in{channel}_label") or f"{chip}-{channel}"
                found[_free(name, found)] = current * voltage / 1e6
    return found


def gpu_memory_used() -> int | None:
    """Bytes of the first CUDA device; None until this process uses it, for looking would begin that."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    free, total = cuda.mem_get_info(0)
    return int(total - free)


def _number(path: Path) -> int | None:
    """What a sensor says; None where there is none, or it is asleep."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _word(path: Path) -> str:
    """A sensor's name as a driver gives it, fit for a label."""
    try:
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.read_text().strip())[:40]
    except (OSError, ValueError):
        return ""


def _free(name: str, taken: dict[str, float]) -> str:
    """The name, numbered where another sensor has it."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if one not in taken)
