"""Coverage-guided fuzzing of the same table with atheris: ``python -m tests.fuzz.atheris_run TARGET --seconds N``.

TARGET is a name of ``decoders.DECODERS`` or ``all``, which shares the seconds among them, each in a process of its
own.  What it finds lies in ``--folder`` (default ``.fuzz``) as ``crash-...``, ``timeout-...`` or ``oom-...``, beside
the corpus, from which the next run goes on; ``--replay FILE`` reads one again.  atheris is not among the development
packages, for it has wheels for some Pythons on x86-64 only (3.0.0: CPython 3.11 to 3.13): ``pip install atheris``.
Without it `make fuzz` lets hypothesis try many more inputs than `make test` does.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOMS: Final = ["nexus_common", "nexus_client", "nexus_server"]
LIMITS: Final = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=65536", "-print_final_stats=1", "-close_fd_mask=0"]


def main() -> int:
    """Exit code 0 where nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"))
    parser.add_argument("--replay", type=Path)
    args = parser.parse_args()
    if args.target == "all":
        return _all(args.seconds, args.folder)
    import atheris

    with atheris.instrument_imports(include=ROOMS):
        from tests.fuzz.decoders import DECODERS
    from tests.fuzz.mutations import TOKENS

    decoder = DECODERS[args.target]
    if args.replay:
        decoder(args.replay.read_bytes())
        return 0
    corpus = args.folder / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(decoder.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = args.folder / "tokens"
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in TOKENS if len(token) < 100))
    artifacts = f"-artifact_prefix={args.folder}/{args.target}-"
    limits = [f"-max_total_time={args.seconds}", f"-dict={words}", artifacts, *LIMITS]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], lambda data: _try(decoder, data))
    atheris.Fuzz()  # ends the process
    return 1


def _try(decoder: object, data: bytes) -> None:
    decoder(data)  # type: ignore[operator]


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _all(seconds: int, folder: Path) -> int:
    from tests.fuzz.decoders import DECODERS

    share = max(10, seconds // len(DECODERS))
    found = []
    for name in DECODERS:
        command = [sys.executable, "-m", __spec__.name, name, "--seconds", str(share), "--folder", str(folder)]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.log").open("wb") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False, env=os.environ)
        text = (folder / f"{name}.log").read_text(errors="replace")
        runs = [line.split()[-1] for line in text.splitlines() if "number_of_executed_units" in line]
        print(
            f"{name:24} {runs[-1] if runs else '?':>9} inputs  {'ok' if done.returncode == 0 else 'FOUND, see the log'}"
        )
        if done.returncode:
            found.append(name)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
