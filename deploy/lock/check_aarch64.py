"""`make check-aarch64`: what a site's board installs, from any machine.

Every package that deploy/lock names for a client on aarch64 is fetched as a wheel for it, by hash.  Where QEMU's
user-mode emulation (`qemu-aarch64`) and Debian's apt are there, an aarch64 Python then imports the client and torch,
and embeds a sentence, which must come out as it does here.  Debian's own packages serve as that Python; root is not
needed.  Speed under emulation says nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from lock import HERE
from nexus_client.embed import default_base
from nexus_client.encoder_file import encoder_file
from pins import pins, wheels_for

ROOT = HERE.parent.parent
FOLDER = ROOT / ".aarch64"
MACHINE = "aarch64"
DEBIAN = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1"),
    *("zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1", "libgomp1"),
)
CPU = "processor\t: 0\nFeatures\t: fp asimd aes sha1 sha2 crc32 atomics asimdhp asimddp\nCPU implementer\t: 0x41\n" \
      "CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n"  # fmt: skip
"""Old emulators show the host's /proc/cpuinfo, at which ONNX Runtime ends with a segmentation fault."""
SENTENCE = "Where do I park at the hospital?"
WITHIN = 1e-5


def fetch(wheels: Path) -> None:
    """All packages, unpacked; pip refuses what has no wheel for the machine, or another hash."""
    wanted = FOLDER / "requirements.txt"
    text = "".join(pins(("torch-cpu", "client"), MACHINE))
    if wheels.exists() and wanted.exists() and wanted.read_text() == text:
        return
    shutil.rmtree(wheels, ignore_errors=True)
    wanted.unlink(missing_ok=True)
    beside = FOLDER / "fetching.txt"
    beside.write_text(text)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *wheels_for(MACHINE),
        "--target",
        wheels,
        "--requirement",
        beside,
    ]
    subprocess.run(command, check=True)
    beside.replace(wanted)


def machine(root: Path) -> Path:
    """An aarch64 Python, unpacked from Debian's packages; its program."""
    program = root / "usr" / "bin" / "python3.11"
    if program.exists():
        return program
    state, debs = FOLDER / "apt", FOLDER / "debs"
    for folder in (state / "lists" / "partial", state / "archives" / "partial", debs):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": state,
                "Dir::State::Lists": state / "lists", "Dir::State::Status": state / "status", "Dir::Cache": state,
                "APT::Sandbox::User": ""}  # fmt: skip
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", "-qq", *options, "update"], check=True)
    subprocess.run(["apt-get", "-qq", *options, "download", *DEBIAN], check=True, cwd=debs)
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPU)
    return program


PROGRAM = """
import json, platform, sys
import numpy as np, onnxruntime, torch
from tokenizers import Tokenizer
import nexus_client.cli
from nexus_common.adapter import DendriticAdapter
from nexus_common.layout import Layout
graph, tokenizer, sentence = sys.argv[1:]
tokens = Tokenizer.from_file(tokenizer)
tokens.no_padding()
ids = np.array([tokens.encode(sentence).ids])
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
states, base = session.run(["token_embeddings", "base_embedding"], {"input_ids": ids, "attention_mask": ids * 0 + 1})
layout = Layout(1, 1)
adapter = DendriticAdapter(layout).load_vector(layout.first_vector(b"aarch64"))
made = adapter(torch.from_numpy(states[0]), torch.tensor([states.shape[1]])).detach().numpy()
print(json.dumps({"machine": platform.machine(), "vectors": [base[0].tolist(), made[0].tolist()]}))
"""


def embedded(python: list[str], path: list[Path]) -> tuple[str, np.ndarray]:
    """The machine's name and [2, 384]: a sentence under the base model, and under an adapter with dendrites."""
    base = default_base()
    graph = encoder_file(base, FOLDER / "encoder", "fp32")
    done = subprocess.run(
        [*python, "-c", PROGRAM, graph, base / "tokenizer.json", SENTENCE], check=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return found["machine"], np.array(found["vectors"])


def main() -> int:
    """0 where everything is there, and works where that can be tried."""
    FOLDER.mkdir(exist_ok=True)
    wheels = FOLDER / "wheels"
    fetch(wheels)
    print(f"{len(list(pins()))} packages for aarch64, each a wheel with the locked hash")
    lacking = [program for program in ("qemu-aarch64", "apt-get", "dpkg-deb") if not shutil.which(program)]
    if lacking:
        print(f"not tried under emulation: {', '.join(lacking)} is missing (Debian: apt-get install qemu-user)")
        return 0
    rooms = [ROOT / "client", ROOT / "common"]
    root = FOLDER / "debian"
    try:
        program = machine(root)
    except subprocess.CalledProcessError as problem:
        print(f"not tried under emulation: {problem.cmd[0]} could not get Debian 12's Python for arm64 (see above)")
        return 0
    there, theirs = embedded(["qemu-aarch64", "-L", str(root), str(program)], [wheels, *rooms])
    here, ours = embedded([sys.executable], rooms)
    apart = float(np.abs(theirs - ours).max())
    print(f"{there}: the client is imported and a sentence embedded, within {apart:.1e} of {here} (at most {WITHIN})")
    return 0 if there == MACHINE and apart <= WITHIN else 1


if __name__ == "__main__":
    sys.exit(main())
