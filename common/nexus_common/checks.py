"""What ``check`` finds, on either side: one line for each thing looked at, with the remedy where it is not good."""

from pathlib import Path
from typing import Final, Literal

import typer

from nexus_common.audit import Unfinished, verify
from nexus_common.cli import show
from nexus_common.errors import NexusError, Unreadable
from nexus_common.rpc import Body

_SIGNS: Final = {"ok": "ok", "warning": "WARN", "fault": "FAULT"}


class CheckLine(Body):
    """One thing looked at; ``remedy`` where it is not good."""

    name: str
    state: Literal["ok", "warning", "fault"]
    found: str
    remedy: str | None = None


class CheckReport(Body):
    """All checks; good means no fault."""

    lines: list[CheckLine]

    @property
    def faults(self) -> int:
        """How many have to be mended."""
        return sum(line.state == "fault" for line in self.lines)


def line(name: str, state: str, found: str, remedy: str | None = None) -> CheckLine:
    """One thing looked at."""
    return CheckLine.model_validate({"name": name, "state": state, "found": found, "remedy": remedy})


def check_log(path: Path) -> CheckLine:
    """Whether an audit log can be read, and whether its chain holds: only one of the two can be tampering."""
    try:
        head = verify(path)
    except Unfinished as problem:
        told = "nothing: the next line that is written mends it; if the disk is full, free some space"
        return line("audit log", "warning", str(problem), told)
    except Unreadable as problem:
        remedy = f"give {path} back to the account that its folder belongs to (`chown`), or mend the disk"
        return line("audit log", "fault", str(problem), remedy)
    except NexusError as problem:
        return line("audit log", "fault", str(problem), "a chain that broke is a matter for whoever audits you")
    return line("audit log", "ok", f"{head.lines} lines, whole as far as it goes; head {head.hash[:16]}…")


def show_checks(context: typer.Context, report: CheckReport, before: str) -> None:
    """Print all lines; NexusError where there is a fault, to be mended ``before`` something."""
    lines = [
        f"{_SIGNS[one.state]:5}  {one.name}: {one.found}" + (f"\n         -> {one.remedy}" if one.remedy else "")
        for one in report.lines
    ]
    show(context, report.model_dump(), "\n".join(lines))
    if report.faults:
        raise NexusError(f"{report.faults} fault(s) to mend before {before}")
