"""``nexus-client bench``."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from nexus_common.account import act_as_owner
from nexus_common.base_model import base_hash
from nexus_common.cli import options, show, table
from rich.console import Console

from nexus_client.site import SiteHome, default_base


def add_bench_command(app: typer.Typer) -> None:
    """The one command."""
    app.command("bench")(_bench)


def _bench(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="for each kind of text (5)", show_default=False)] = 5,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="in place of cpu_threads in site.toml")] = None,
) -> None:
    """Measure queries a second, latency, memory and start on this machine.

    Works on a machine that has not joined, too.

    \b
    Example: nexus-client bench
    """
    from nexus_client.board_bench import BoardReport, bench  # noqa: PLC0415
    from nexus_client.model_list import BASE  # noqa: PLC0415
    from nexus_client.shelf import Shelf  # noqa: PLC0415

    given = options(context)

    def measured(base: Path, graphs: Path, name: str, model: Path | None, cores: int) -> BoardReport:
        with Console(stderr=True).status("measuring (the encoder's graph is made first, once: about 20 s) ..."):
            return bench(base, graphs, name, model, threads or cores, seconds)

    if given.site is None and not SiteHome.there(given.home):
        with tempfile.TemporaryDirectory() as folder:
            report = measured(default_base(), Path(folder), BASE, None, 2)
    else:
        place = SiteHome.find(given.home, given.site)
        act_as_owner(place.state)
        settings, shelf = place.settings(), Shelf(place)
        name = shelf.models.in_use
        base = settings.base_folder
        model = None if name == BASE else shelf.file_of(name)
        report = measured(base, place.graphs(base_hash(base)), name, model, settings.cpu_threads)
    limit = report.limit
    rows = [
        ["short queries a second", *(f"{m.queries_per_second:.0f}" for m in report.measured),
         f"{1000 / limit.query_ms:.0f}"],
        ["of one, 50 / 95 / 99 % within, ms",
         *(f"{m.p50:.1f} / {m.p95:.1f} / {m.p99:.1f}" for m in report.measured), f"{limit.query_ms:.1f}"],
        [f"passages of {report.measured[0].pieces} word pieces a second",
         *(f"{m.passages_per_second:.1f}" for m in report.measured), f"{1000 / limit.passage_ms:.1f}"],
        ["the adapter's part of a query", *(f"{100 * m.adapter_share:.1f} %" for m in report.measured), ""],
        ["memory after the first query, MB", *(f"{m.idle_mb:.0f}" for m in report.measured), ""],
        ["memory at most, MB", *(f"{m.most_mb:.0f}" for m in report.measured), ""],
        ["start to first answer, s", *(f"{m.start_seconds:.2f}" for m in report.measured), ""],
    ]  # fmt: skip
    head = ["", *(m.precision for m in report.measured), "float32 products alone"]
    text = [
        f"model {report.model}, {report.machine}, {report.threads} threads",
        table(head, rows, (1, 2, 3)),
        "one text at a time, as search and serve do; a line to send to others:",
        report.line,
    ]
    show(context, report.model_dump() | {"line": report.line}, "\n".join(text))
