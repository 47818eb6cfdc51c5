"""``export``: a model of this site as a folder for tools that know nothing of NEXUS.

Every file is loaded and compared with the live model before the folder appears under its name; where one differs,
nothing appears.  The command reads the site's shelf by itself, beside a running agent or without one.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nexus_common.audit import AuditLog
from nexus_common.disk import free_bytes
from nexus_common.errors import NexusError
from nexus_common.rpc import Body

from nexus_client import model_card, stock_modules
from nexus_client.embed import loaded
from nexus_client.encoder_file import MOST_TOKENS, PRECISIONS, encoder_file
from nexus_client.export_checks import (
    PROBES,
    TOLERANCE,
    check_folder,
    check_graph,
    check_loads,
    judge_int8,
    live_vectors,
)
from nexus_client.model_card import ONNX, Subject
from nexus_client.model_list import BASE, Models
from nexus_client.onnx_graph import Runner, graft, write_tokenizer
from nexus_client.searched import MOST_LOST
from nexus_client.shelf import Shelf
from nexus_client.whole_folder import whole_folder
from nexus_client.workspace import Workspace

MARKER: Final = "nexus.json"
Tell = Callable[[str], None]


class ExportReport(Body):
    """What was written; ``notes`` are sentences that a person should read, ``usage`` lines of Python by library."""

    site: str
    folder: str
    model: str
    kind: str
    adapter: str | None
    megabytes: float
    seconds: float
    confidential: str
    privacy: str
    loads: str
    notes: list[str]
    usage: dict[str, str]


def export(
    workspace: Workspace, asked: str | None, target: Path, *, onnx: bool, force: bool, tell: Tell = lambda _: None
) -> ExportReport:
    """Write the model that ``asked`` names (None: what is in use) to ``target``; NexusError where that cannot be."""
    began, target = time.monotonic(), target.expanduser().resolve()
    shelf = Shelf(workspace.place)
    subject, models = _subject(workspace, shelf, asked), shelf.models
    _outside(workspace, target)
    with whole_folder(target, MARKER, force=force) as made:
        _room(workspace.base_folder, made, onnx=onnx)
        notes = _write(workspace, subject, models, made, target, onnx=onnx, tell=tell)
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        digest = subject.adapter.digest if subject.adapter else None
        AuditLog(workspace.place.audit_file).append("exported", model=subject.name, sha256=digest, folder=str(target))
    return ExportReport(
        site=workspace.place.site,
        folder=str(target),
        model=subject.name,
        kind=subject.kind,
        adapter=str(subject.layout) if subject.layout else None,
        megabytes=round(size / 1e6, 1),
        seconds=round(time.monotonic() - began, 1),
        confidential=subject.confidential,
        privacy=subject.privacy,
        loads=model_card.loads(subject.layout),
        notes=notes,
        usage=model_card.usage(target, onnx=onnx),
    )


def _subject(workspace: Workspace, shelf: Shelf, asked: str | None) -> Subject:
    name = shelf.models.in_use if asked is None else shelf.resolve(asked)
    base = workspace.base_hash
    return Subject(name, shelf.models.named(name), shelf.usable(name, base), base)


def _outside(workspace: Workspace, target: Path) -> None:
    """An export does not belong where the site or the base model keeps its own."""
    sources = [workspace.place.settings_folder / Path(one.path).expanduser() for one in workspace.settings.data]
    text = [("this site's text, and would be taken for some of it", source) for source in sources if source.is_dir()]
    for what, folder in (
        ("this site's state", workspace.place.state),
        ("the base model", workspace.base_folder),
        *text,
    ):
        if target.is_relative_to(folder.resolve()):
            raise NexusError(f"{target} lies in the folder of {what} ({folder}); name a place outside of it")


def _room(base: Path, folder: Path, *, onnx: bool) -> None:
    need = int(sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) * (2.5 if onnx else 1.2))
    if (free := free_bytes(folder)) < need:
        raise NexusError(
            f"{free / 1e6:.1f} MB are free in {folder.parent}, and about {need / 1e6:.1f} MB are needed; free some "
            "space, or name another place"
        )


def _write(
    workspace: Workspace, subject: Subject, models: Models, made: Path, target: Path, *, onnx: bool, tell: Tell
) -> list[str]:
    """Fill the folder and check it; what a person should know of it."""
    tell("writing the folder, and comparing it with the live model")
    stock_modules.write_folder(workspace.base_folder, made, subject.weights)
    base = loaded(workspace.base_folder, "cpu")
    most_tokens = min(base.max_seq_length or MOST_TOKENS, MOST_TOKENS)
    right = live_vectors(base, subject.weights)
    check_folder(made, right)
    graphs = _graphs(workspace, subject, made / ONNX, most_tokens, right, tell) if onnx else []
    judged = model_card.judged(workspace.place, subject, models)
    text = model_card.card(subject, target, judged, most_tokens, graphs)
    (made / "README.md").write_text(text, encoding="utf-8")
    facts = {"format": 1, "model": subject.name, "kind": subject.kind, "base_model": subject.base_hash}
    (made / MARKER).write_text(json.dumps(facts, indent=2))
    notes = [] if judged or subject.kind == BASE else ["not evaluated here: `nexus-client evaluate`, then export again"]
    if subject.held and not subject.held.accepted:
        notes.append(f"this site does not take it: {subject.held.reason}")
    return [f"the folder gives the live model's vectors ({len(PROBES)} texts, within {TOLERANCE})", *graphs, *notes]


def _graphs(
    workspace: Workspace, subject: Subject, folder: Path, most_tokens: int, right: Any, tell: Tell
) -> list[str]:
    """Write and check the ONNX graphs; a sentence on each."""
    folder.mkdir()
    base, threads = workspace.base_folder, workspace.settings.cpu_threads
    tokenizer = folder / "tokenizer.json"
    write_tokenizer(base, tokenizer, most_tokens)
    runners = dict[str, Runner]()
    for precision in PRECISIONS:
        tell(f"ONNX, {precision} (the first time the encoder is made a graph, for half a minute)")
        encoder = encoder_file(base, workspace.place.graphs(workspace.base_hash), precision)
        graft(encoder, folder / f"{precision}.onnx", subject.weights)
        runners[precision] = Runner(folder / f"{precision}.onnx", tokenizer, threads)
    check_graph(runners["fp32"], right)
    check_loads(runners["int8"])
    tell("judging the 8-bit graph on this site's hold-out")
    judged = judge_int8(workspace, runners["fp32"], runners["int8"])
    told = ["`onnx/fp32.onnx` gives the same vectors"]
    if isinstance(judged, str):
        return [*told, f"`onnx/int8.onnx` was not judged: {judged}"]
    scores = f"score {100 * judged.int8:.1f} in place of {100 * judged.fp32:.1f}, over {judged.questions} questions"
    if judged.lost > MOST_LOST:
        (folder / "int8.onnx").unlink()
        return [*told, f"no 8-bit graph: it finds worse here ({scores}; at most {100 * MOST_LOST:g} may be lost)"]
    return [*told, f"`onnx/int8.onnx` has 8-bit weights: {scores}; a text's vector depends a little on its batch"]
