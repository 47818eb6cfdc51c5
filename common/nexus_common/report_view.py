"""The ``report`` command, the same in both programs: one HTML file, or the numbers in it."""

from pathlib import Path
from typing import Annotated

import typer

from nexus_common.cli import options, show
from nexus_common.errors import NexusError
from nexus_common.report import Report

OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="the page's file", show_default=False)]


def show_report(context: typer.Context, report: Report, output: Path | None, name: str) -> None:
    """Write the page to ``output``, else to NAME.html here; with ``--json`` only where an output is named."""
    path = output or (None if options(context).as_json else Path(f"{name}.html"))
    if path is not None:
        _write(path, report)
    where = str(path) if path else None
    show(context, report.model_dump(mode="json") | {"file": where}, f"written: {where} (one page, for a browser)")


def _write(path: Path, report: Report) -> None:
    from nexus_common.report_page import as_html  # noqa: PLC0415  matplotlib, which nothing else needs

    page = as_html(report)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as problem:
        raise NexusError(
            f"{path} cannot be written: {problem.strerror} ({len(page)} bytes); name another file: -o FILE"
        ) from None
