"""What a machine installs of deploy/lock, whichever machine asks."""

import re
from collections.abc import Iterator

from lock import HERE
from packaging.requirements import Requirement

GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


def pins(names: tuple[str, ...], machine: str, python: str = "3.11") -> Iterator[str]:
    """The pins of these files for a Linux machine and a Python, as lines of a requirements file without markers."""
    there = {"platform_machine": machine, "sys_platform": "linux", "python_version": python,
             "python_full_version": f"{python}.0", "extra": ""}  # fmt: skip
    for name in names:
        for pin in re.finditer(r"^(\w.*?) \\\n((?:[ \t].*\n)*)", (HERE / f"{name}.txt").read_text(), re.MULTILINE):
            wanted = Requirement(pin[1])
            if wanted.marker is None or wanted.marker.evaluate(there):
                yield f"{wanted.name}{wanted.specifier} \\\n{pin[2]}"


def wheels_for(machine: str, python: str = "3.11") -> list[str]:
    """Options with which pip takes wheels for such a machine, by hash, and nothing else."""
    platforms = [option for glibc in GLIBC for option in ("--platform", f"{glibc}_{machine}")]
    return [*platforms, "--python-version", python, "--implementation", "cp", "--only-binary", ":all:", "--no-deps",
            "--require-hashes", "--disable-pip-version-check", "--quiet"]  # fmt: skip
