"""Commands of ``nexus-client`` that find: ``index``, ``search``, ``serve``.  None of them loads torch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from nexus_common import logs
from nexus_common.cli import show
from rich.console import Console
from rich.progress import Progress as Bar

from nexus_client.cli_consent import ModelOption, place_to_write
from nexus_client.site import SiteHome

SNIPPET_CHARACTERS = 240
SAID_EVERY = 1000  # texts, in a log


def add_search_commands(app: typer.Typer) -> None:
    """In the order in which help lists them."""
    app.command("index")(_index)
    app.command("search")(_search)
    app.command("serve")(_serve)


def _index(context: typer.Context, model: ModelOption = None) -> None:
    """Build or update the search index now.

    \b
    Example: nexus-client index
    """
    from nexus_client.index_build import building  # noqa: PLC0415
    from nexus_client.shelf import Shelf  # noqa: PLC0415

    place = place_to_write(context)
    asked = [Shelf(place).resolve(model)] if model else []
    with _told(place) as told, building(place, asked, on_wait=_waits) as build:
        found = build.run(told(len(build.missing)) if build.due else lambda *_: None)
    if not found.changed:
        show(context, asdict(found), f"nothing has changed: {found.rows} passages, models: {', '.join(found.models)}")
        return
    lines = [
        f"{found.rows} passages: {found.added} new, {found.removed} gone, {found.encoded} encoded, "
        f"{found.seconds:.1f} s; models: {', '.join(found.models)}"
    ]
    if found.cut:
        lines.append(
            f"note: {found.cut} of the texts encoded are longer than the base model reads: only their beginning counts"
        )
    lines += [f"note: without model {name}: {reason}" for name, reason in found.left_out.items()]
    show(context, asdict(found), "\n".join(lines))


def _search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="a question, in your own words")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="how many passages (5)", show_default=False)] = 5,
    model: ModelOption = None,
) -> None:
    """Search this site's own text.

    \b
    Example: nexus-client search "chest pain"
    """
    from nexus_client.search import search_site  # noqa: PLC0415

    place = place_to_write(context)
    with _told(place) as told:
        found = search_site(place, query, k, model, told)
    lines = [f"model: {found.model}"]
    for hit in found.hits:
        where = f"{hit.file} line {hit.line}" + (f", {hit.section}" if hit.section else "")
        text = hit.text if len(hit.text) <= SNIPPET_CHARACTERS else hit.text[:SNIPPET_CHARACTERS] + "…"
        lines += [f"\n{hit.rank:2}  {hit.score:.3f}  {where}", f"    {text}"]
    if found.note:
        lines.append(f"\nnote: {found.note}")
    show(context, asdict(found), "\n".join(lines))


def _serve(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port (8765)", show_default=False)] = 8765,
    host: Annotated[str, typer.Option(help="address to listen on (127.0.0.1)", show_default=False)] = "127.0.0.1",
    token_file: Annotated[Path | None, typer.Option(help="file with the bearer token that clients must send")] = None,
    name: Annotated[str | None, typer.Option(help="name of a TLS proxy before it, that clients use")] = None,
) -> None:
    """Serve embeddings in OpenAI's form, search, and a search page.

    \b
    Example: nexus-client serve --port 8765
    """
    from nexus_client.listen import read_token, serve  # noqa: PLC0415

    token = None if token_file is None else read_token(token_file)  # root may be the only one who can
    place = place_to_write(context)
    logs.begin(place.site)
    serve(place, host, port, token, name)


class _Told:
    """Says on stderr what takes long: a bar on a terminal, plain lines in a log."""

    def __init__(self, bar: Bar | None, first: bool) -> None:
        self._bar, self._first = bar, first

    def __call__(self, count: int) -> Callable[[int, int], None]:
        """What hears of ``count`` texts that are being encoded."""
        if self._first:
            _say("making the encoder's graph, once for this site: about 20 s ...")
        if self._bar is not None:
            task = self._bar.add_task("encoding", total=count)
            return lambda done, _: self._bar.update(task, completed=done) if self._bar else None
        if count:
            _say(f"encoding {count} texts")
        return lambda done, total: (
            _say(f"encoded {done} of {total}") if done % SAID_EVERY < 16 or done == total else None
        )


@contextmanager
def _told(place: SiteHome) -> Iterator[_Told]:
    first = not any((place.state / "onnx").glob("*/encoder-*.onnx"))
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Told(None, first)
        return
    with Bar(console=console, transient=True) as bar:
        yield _Told(bar, first)


def _waits() -> None:
    _say("another process is updating the index; waiting for it ...")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
