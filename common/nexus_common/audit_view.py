"""The ``audit`` command, the same in both programs: the lines, or whether all of them are there."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nexus_common import audit
from nexus_common.cli import show
from nexus_common.syslog import announce

VerifyOption = Annotated[bool, typer.Option("--verify", help="check that no line was changed, lost or moved")]
SinceOption = Annotated[str | None, typer.Option("--from", help="a head noted earlier: nothing before it was cut")]


def show_audit(context: typer.Context, path: Path, program: str, *, verify: bool, since: str | None) -> None:
    """Print the lines unless ``verify`` or ``since``, then the count and the head, which go to the system's log too."""
    verify = verify or since is not None
    head = audit.verify(path, since)
    lines = [] if verify else list(audit.read(path))
    noted = "also in the system's log" if announce(program, head) else "no system log answers here: note it"
    last = f"{head.lines} lines, head {head.hash} ({noted})"
    if since:
        last += "\nwhole: no line was changed, lost, moved or cut"
    elif verify:
        last += "\nwhole as far as it goes; only --from HEAD, with a head noted earlier, finds a cut or changed end"
    entries = {"lines": head.lines, "head": head.hash} | ({} if verify else {"entries": lines})
    show(context, entries, "\n".join([*map(_line, lines), last]))


def _line(line: dict[str, Any]) -> str:
    facts = {key: value for key, value in line.items() if key not in ("n", "at", "event", "previous")}
    shown = "  ".join(f"{name}={_short(value)}" for name, value in facts.items())
    return f"{line['n']:>6}  {line['at']}  {_short(line['event'])}  {shown}".rstrip()


def _short(value: object) -> str:
    text = f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
    return text if text.isprintable() else ascii(text)  # a log may hold what a peer named; no terminal obeys it
