"""`make lock`: uv.lock from pyproject.toml, and from it the requirement files that pip installs by hash.

uv.lock alone knows every file of every package; the exported files work with any index, mirror or folder of wheels,
and with nothing but pip.  torch stands apart, because x86_64 has two builds of one version:

- torch-cpu.txt: PyTorch's own CPU build on x86_64 (its index is not PyPI, so the hashes come from `torch-cpu.sha256`),
  PyPI's build, which is for CPUs, on aarch64;
- torch-cuda.txt: PyPI's build on x86_64, and the CUDA libraries that it alone needs.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETS = {
    "build": ("--only-group", "build"),
    "server": ("--extra", "server"),
    "client": ("--extra", "client"),
    "pai": ("--extra", "pai"),
    "demo": ("--only-group", "demo"),
    "dev": ("--only-group", "dev"),
}
HEAD = "# Written by `make lock` from uv.lock; install with pip --require-hashes --no-deps --only-binary :all:\n"
CUDA = re.compile(r"(nvidia|cuda)-[a-z0-9-]+|triton")


def entries(text: str) -> dict[str, str]:
    """A requirements file's entries by package; one package has an entry for each environment that differs."""
    found: dict[str, str] = {}
    for entry in re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, re.MULTILINE):
        name = re.split("[= ;]", entry, maxsplit=1)[0]
        found[name] = found.get(name, "") + entry
    return found


def cpu_build(version: str) -> str:
    """The entry of PyTorch's CPU build; raises ``ValueError`` where its hashes are another version's."""
    lines = (HERE / "torch-cpu.sha256").read_text().splitlines()
    hashes, names = zip(*(line.split("  ") for line in lines), strict=True)
    if any(name.split("-")[1] != f"{version}+cpu" for name in names):
        raise ValueError(
            f"torch-cpu.sha256 is for {names[0]}, uv.lock has torch {version}: take the hashes of its x86_64 Linux "
            "wheels from https://download.pytorch.org/whl/cpu/torch/"
        )
    head = f"torch=={version}+cpu ; platform_machine == 'x86_64' and sys_platform == 'linux'"
    return " \\\n".join([head, *(f"    --hash=sha256:{one}" for one in hashes)]) + "\n"


def outside(uv: list[str], names: set[str]) -> dict[str, str]:
    """The environment without NEXUS (``outside/pyproject.toml``), but for torch and what comes with it."""
    folder = ["--directory", str(HERE / "outside")]
    subprocess.run([*uv, "lock", *folder, *sys.argv[1:]], check=True)
    options = ["--frozen", "--no-emit-project", "--no-annotate", "--no-header", *folder]
    found = entries(subprocess.run([*uv, "export", *options], check=True, capture_output=True, text=True).stdout)
    return {name: entry for name, entry in found.items() if name not in names and not CUDA.fullmatch(name)}


def main() -> None:
    """Lock, with ``--upgrade`` to the newest versions that pyproject.toml allows, and write the files."""
    uv = [str(Path(sys.executable).parent / "uv"), "--quiet"]
    subprocess.run([*uv, "lock", *sys.argv[1:]], check=True)
    sets = dict[str, dict[str, str]]()
    for name, choice in SETS.items():
        options = ["--frozen", "--no-emit-project", "--no-annotate", "--no-header", *choice]
        sets[name] = entries(
            subprocess.run([*uv, "export", *options], check=True, capture_output=True, text=True).stdout
        )
    client = sets["client"]
    by_machine = re.finditer(r"torch==(\S+).*'(x86_64|aarch64)'.*\n(?:[ \t].*\n)*", client["torch"])
    torch = {found[2]: (found[1], found[0]) for found in by_machine}
    sets["torch-cpu"] = {"torch": torch["aarch64"][1] + cpu_build(torch["x86_64"][0])}
    sets["torch-cuda"] = {"torch": torch["x86_64"][1]}
    sets["torch-cuda"] |= {name: client.pop(name) for name in list(client) if CUDA.fullmatch(name)}
    del client["torch"]
    for name in ("pai", "dev"):  # they come on top of the client's
        known = {*client, *sets["torch-cuda"]}
        sets[name] = {package: entry for package, entry in sets[name].items() if package not in known}
    sets["outside"] = outside(uv, {"torch"})
    for name, packages in sets.items():
        (HERE / f"{name}.txt").write_text(HEAD + "".join(packages.values()))
        print(f"deploy/lock/{name}.txt: {len(packages)} packages")


if __name__ == "__main__":
    main()
