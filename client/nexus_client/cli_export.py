"""``nexus-client export``: a model as a folder for sentence-transformers, LangChain, LlamaIndex, Chroma, ONNX."""

from pathlib import Path
from typing import Annotated

import typer
from nexus_common.cli import show
from rich.console import Console

from nexus_client.cli_consent import ModelOption, place_of


def add_export_command(app: typer.Typer) -> None:
    """``export``."""
    app.command("export")(_export)


def _export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
    model: ModelOption = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="ONNX graphs too, with 32 and 8 bits")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export")] = False,
) -> None:
    """Write a model as a folder that loads without NEXUS.

    \b
    Example: nexus-client export ./model --onnx
    """
    from nexus_client import export as exporting  # noqa: PLC0415  torch only where it is used
    from nexus_client.reports import workspace_of  # noqa: PLC0415

    workspace = workspace_of(place_of(context))
    with Console(stderr=True).status("reading the model ...") as status:
        report = exporting.export(
            workspace, model, folder, onnx=onnx, force=force, tell=lambda what: status.update(f"{what} ...")
        )
    adapter = f"adapter: {report.adapter}" if report.adapter else "without an adapter"
    lines = [
        f"{report.folder}: model {report.model} ({adapter}), {report.megabytes:.1f} MB, {report.seconds:.0f} s",
        *(f"- {note}" for note in report.notes),
        f"needs {report.loads}",
        "",
        report.confidential,
        report.privacy,
        *(f"\n# {library}\n{each}" for library, each in report.usage.items()),
    ]
    show(context, report.model_dump(), "\n".join(lines))
