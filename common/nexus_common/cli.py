"""What both command lines share: options that may stand anywhere, ``--json``, tables, exit codes 0, 1, 2."""

import datetime as dt
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import click
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nexus_common.errors import NexusError

HomeOption = Annotated[Path | None, typer.Option("--home", help="folder for everything, without root")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]
_VALUED: Final = ("--home", "--site")


@dataclass(frozen=True)
class Options:
    """The options that stand anywhere; a program's callback puts them into ``context.obj``."""

    home: Path | None
    as_json: bool
    site: str | None = None


typer.core.HAS_RICH = False  # where rich prints no help, typer would still escape "[required]" for it


class AnywhereOptions(typer.core.TyperGroup):
    """A group whose own options may also stand behind the command's name, and whose commands keep a given order."""

    order: tuple[str, ...] = ()

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In ``order``; typer puts groups behind all commands."""
        return sorted(super().list_commands(ctx), key=self.order.index)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move ``--home X``, ``--site X`` and ``--json`` to the front."""
        front: list[str] = []
        rest: list[str] = []
        left = iter(args)
        for arg in left:
            if arg == "--":
                rest += [arg, *left]
            elif arg == "--json" or arg.startswith(tuple(f"{name}=" for name in _VALUED)):
                front.append(arg)
            elif arg in _VALUED:
                front += [arg, *(value for value in (next(left, None),) if value is not None)]
            else:
                rest.append(arg)
        return super().parse_args(ctx, front + rest)


def new_app(what: str, example: str, order: str) -> typer.Typer:
    """A program's commands, listed in ``order``; without one it runs (``callback(invoke_without_command=True)``)."""
    return typer.Typer(
        cls=type("Program", (AnywhereOptions,), {"order": tuple(order.split())}),
        no_args_is_help=False,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=f"{what}\n\n\b\nExample: {example}",
    )


def run_cli(app: typer.Typer, name: str, argv: list[str] | None) -> int:
    """Exit code: 0 good, 1 failed (with the cause on stderr), 2 usage."""
    command = typer.main.get_command(app)
    try:
        found = command.main(args=argv, prog_name=name, standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except NexusError as problem:
        said = str(problem)
    except PermissionError as problem:
        said = f"no permission for {problem.filename}; run it as root, or give --home DIR"
    except OSError as problem:
        said = f"{problem.filename or 'a file'}: {problem.strerror or problem}"
    else:
        return found if isinstance(found, int) else 0  # an exit code where typer turned one into a value
    sys.stderr.write(f"{name}: {harmless(said)}\n")
    return 1


def harmless(text: str) -> str:
    """Text for a terminal: what is neither seen nor a line break is written out, for a peer may have worded it."""
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else ascii(c)[1:-1] for c in text)


def show(context: typer.Context, data: Any, text: str) -> None:
    """Print ``data`` as JSON where asked for, else ``text``."""
    typer.echo(json.dumps(data, indent=2) if options(context).as_json else harmless(text))


def show_backup(context: typer.Context, file: Path, count: int, digest: str, head: str, secrets: str) -> None:
    """What ``backup`` has written: ``count`` files, the SHA-256 of the whole, and what in it is secret.

    ``head`` is the audit log's, to be noted elsewhere: a log that was cut or written anew later no longer has it.
    """
    size = file.stat().st_size
    show(
        context,
        {"file": str(file), "bytes": size, "sha256": digest, "files": count, "audit_head": head},
        f"written: {file}, {size / 1e6:.1f} MB, SHA-256 {digest}\n"
        f"the audit log's head now: {head}\n"
        f"It holds {secrets}, mode 0600; keep it where you would keep those.",
    )


def options(context: typer.Context) -> Options:
    """What the program's callback found."""
    found = context.find_object(Options)
    if found is None:
        raise RuntimeError("the callback did not set the options")
    return found


def table(head: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """A plain table as text."""
    made = Table(*[], box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(made)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def moment(unix_seconds: float) -> str:
    """Local time to the minute, with the date."""
    return dt.datetime.fromtimestamp(unix_seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def ago(unix_seconds: float | None) -> str:
    """How long ago, in the largest fitting unit."""
    if unix_seconds is None:
        return "never"
    seconds = max(0, int(dt.datetime.now().timestamp() - unix_seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
