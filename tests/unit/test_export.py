"""``nexus-client export``: its folders load where NEXUS is not, and give the live model's vectors."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from nexus_client import export as exporting
from nexus_client import stock_modules
from nexus_client.agent_api import EvaluateReport
from nexus_client.cli import main
from nexus_client.embed import default_base, loaded
from nexus_client.export_checks import PROBES, judge_int8, live_vectors
from nexus_client.model_list import Kind
from nexus_client.onnx_graph import Runner
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_common import audit
from nexus_common.layout import Layout
from nexus_common.recipe import Recipe
from nexus_common.report import QualityLine
from nexus_common.versions import StoredAdapter

from tests.plans import make_plan
from tests.processes.volume import needs_root, volume
from tests.unit.vectors import lively

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ROOT / ".venv-outside" / "bin" / "python"
LIBRARIES = ["sentence-transformers", "LangChain", "LlamaIndex", "Chroma"]
QUESTION = "the machine kept my card"
TEXTS = [PROBES[i] for i in (0, 3, 7, 15)]  # an empty one among them, and one that is cut
ROWS = [{"query": f"where is the cup number {i}", "passage": f"cup {i} is in room {i * 7}"} for i in range(40)]
FORMS: dict[str, tuple[Kind, Layout]] = {
    "plain": ("alone", Layout(0)),
    "tanh": ("federated", Layout(1)),
    "sigmoid": ("personal", Layout(2, None, "sigmoid")),
    "salience": ("alone", Layout(1, 0)),
    "all": ("personal", Layout(2, 1, "sigmoid")),
}


def make_place(home: Path, graphs: Path) -> SiteHome:
    place = SiteHome.of(home, "a")
    place.state.mkdir(parents=True)
    (place.state / "onnx").symlink_to(graphs.parent)
    place.settings_file.write_text(
        'site = "a"\nserver = "127.0.0.1:1"\ncpu_threads = 1\n[[data]]\npath = "rows.jsonl"\n'
    )
    (home / "a" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return place


def put(place: SiteHome, kind: Kind, layout: Layout, number: int = 1) -> str:
    recipe = make_plan(["a", "b", "c"], name="winter", purpose="finding leaflets") if kind == "federated" else Recipe()
    adapter = StoredAdapter(recipe, number, lively(layout, 3), layout)
    return Shelf(place).put(adapter, kind, accepted=kind != "federated", reason="so it was judged")


def call(place: SiteHome, *args: str) -> int:
    return main(["--home", str(place.settings_folder.parent), "export", *args])


def test_a_site_without_a_model_is_told_so(tmp_path: Path, graphs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path, graphs)
    assert call(place, str(tmp_path / "out"), "--model", "federated") == 1
    assert "there is no federated model here yet; here are: base" in capsys.readouterr().err


@dataclass(frozen=True)
class Made:
    """A site, and what its commands printed, by form."""

    place: SiteHome
    folder: Path
    printed: dict[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> Iterator[Made]:
    """All forms exported, one of them with graphs, and the base model."""
    folder, printed = tmp_path_factory.mktemp("exports"), dict[str, str]()
    place = make_place(folder / "home", graphs)
    patch = pytest.MonkeyPatch()
    text: list[str] = []
    patch.setattr(os, "fsync", lambda fd: None)  # no disk dies here
    patch.setattr("typer.echo", lambda line, **_: text.append(str(line)))
    for form in [*FORMS, "base"]:
        name = put(place, *FORMS[form]) if form in FORMS else "base"
        options = ["--onnx"] if form == "all" else []
        assert call(place, str(folder / form), "--model", name, *options) == 0
        printed[form] = text.pop()
    patch.undo()
    yield Made(place, folder, printed)


def lines_of(printed: str) -> dict[str, str]:
    """The lines of Python in a command's output, by library."""
    blocks = re.split(r"^# (.*)\n", printed, flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], (block.strip() for block in blocks[1::2]), strict=True))


def test_the_card_says_who_may_have_it_and_how_it_was_made(made: Made) -> None:
    for form, (kind, layout) in FORMS.items():
        card = (made.folder / form / "README.md").read_text()
        assert str(layout) in card
        assert "epsilon: none (records are not protected)" in card
        assert "Not evaluated" in card
        for lines in lines_of(made.printed[form]).values():
            assert lines in card, "the card has the lines that the command prints"
        told = "confidential among these sites" if kind == "federated" else "it can reveal that text"
        assert told in card
        assert told in made.printed[form], "it is said on the screen too"
        assert ("5.4 or later" if layout.salience is not None else "3.4 or later") in card
    card = (made.folder / "tanh" / "README.md").read_text()
    plan = make_plan(["a", "b", "c"], name="winter", purpose="finding leaflets")
    for fact in (
        "this site does not take it: so it was judged",
        "run winter: version 1 of",
        "3 sites",
        plan.hash.hex(),
        "finding leaflets",
        "Apache-2.0",
    ):
        assert fact in card
    assert "hospital" not in card
    assert "nothing from any site" in (made.folder / "base" / "README.md").read_text()


@pytest.fixture(scope="module")
def live(made: Made) -> dict[str, np.ndarray]:
    """What the models give here."""
    base = loaded(default_base(), "cpu")
    forms = {form: (layout, lively(layout, 3)) for form, (_, layout) in FORMS.items()}
    return {form: live_vectors(base, forms.get(form), TEXTS) for form in made.printed}


needs_outside = pytest.mark.skipif(not OUTSIDE.exists(), reason="no .venv-outside: `make test` makes it")


@pytest.fixture(scope="module")
def outside(made: Made) -> dict[str, Any]:
    """One process without NEXUS: the printed lines of two forms, of the others those of sentence-transformers; and the
    retriever over a small handbook, with the base model and another one."""
    handbook = made.folder / "handbook"
    handbook.mkdir()
    for name in ("cards.md", "cash-and-atms.md"):
        shutil.copy(ROOT / "deploy" / "demo" / "bank-a" / "handbook" / name, handbook)
    lines = {form: lines_of(printed) for form, printed in made.printed.items()}
    few = {form: {LIBRARIES[0]: each[LIBRARIES[0]]} for form, each in lines.items() if form not in ("plain", "all")}
    script = [ROOT / "deploy" / "retriever" / "retriever.py", handbook, made.folder / "base", made.folder / "plain"]
    job = {
        "texts": TEXTS,
        "lines": few | {form: lines[form] for form in ("plain", "all")},
        "script": [*map(str, script), QUESTION],
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(OUTSIDE), str(ROOT / "tests" / "unit" / "outside.py")],
        input=json.dumps(job),
        env=environment | {"HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_outside
@pytest.mark.parametrize("form", [*FORMS, "base"])
def test_the_printed_lines_give_the_live_models_vectors_where_nexus_is_not(
    form: str, outside: dict[str, Any], live: dict[str, np.ndarray]
) -> None:
    wanted = {"plain": LIBRARIES, "all": [*LIBRARIES, "ONNX"]}.get(form, LIBRARIES[:1])
    found = outside["vectors"][form]
    assert list(found) == wanted
    for library, vectors in found.items():
        assert np.abs(np.array(vectors) - live[form]).max() < 1e-5, library


def test_8_bit_weights_are_judged_by_the_hold_out(made: Made) -> None:
    card = (made.folder / "all" / "README.md").read_text()
    found = re.search(r"score ([\d.]+) in place of ([\d.]+), over (\d+) questions", card)
    assert found, card
    assert found[0] in made.printed["all"]
    there = {path.name for path in (made.folder / "all" / "onnx").iterdir()}
    kept = float(found[2]) - float(found[1]) <= 1
    assert there == {"fp32.onnx", "tokenizer.json"} | ({"int8.onnx"} if kept else set())


def test_a_graph_that_loses_too_much_is_left_out(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporting, "MOST_LOST", -1.0)
    assert call(made.place, str(made.folder / "less"), "--model", "base", "--onnx") == 0
    assert "no 8-bit graph: it finds worse here (score " in capsys.readouterr().out
    assert {path.name for path in (made.folder / "less" / "onnx").iterdir()} == {"fp32.onnx", "tokenizer.json"}


@pytest.mark.parametrize(("share", "path", "said"), [("0.0", "rows", "no hold-out"), ("0.3", "none", "cannot be read")])
def test_where_nothing_can_judge_it_is_said(tmp_path: Path, graphs: Path, share: str, path: str, said: str) -> None:
    place = make_place(tmp_path, graphs)
    text = place.settings_file.read_text().replace("rows.jsonl", f"{path}.jsonl")
    place.settings_file.write_text(f"holdout_share = {share}\n{text}")
    unused = cast(Runner, None)
    told = judge_int8(exporting.Workspace(place, place.settings()), unused, unused)
    assert isinstance(told, str)
    assert said in told


def test_force_replaces_an_export_and_json_tells_what_the_screen_does(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    (made.folder / "base" / "old").write_text("old")
    assert call(made.place, str(made.folder / "base"), "--model", "base", "--force", "--json") == 0
    assert not (made.folder / "base" / "old").exists()
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["kind"], report["adapter"]) == ("base", "base", None)
    assert report["usage"] == lines_of(made.printed["base"])
    size = sum(path.stat().st_size for path in (made.folder / "base").rglob("*") if path.is_file())
    assert report["megabytes"] == pytest.approx(size / 1e6, abs=0.1)


def test_an_export_is_logged(made: Made) -> None:
    logged = [line for line in audit.read(made.place.audit_file) if line["event"] == "exported"]
    assert [Path(str(line["folder"])).name for line in logged[:6]] == [*FORMS, "base"]
    assert all(("sha256" in line) == (line["model"] != "base") for line in logged)


def transposed(*args: Any) -> list[stock_modules.Dense]:
    *first, last = stock_modules_projection(*args)
    return [*first, stock_modules.Dense(last.weight.T, last.bias)]


stock_modules_projection = stock_modules.projection_modules


def test_a_wrong_writer_is_found_and_nothing_is_left(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stock_modules, "projection_modules", transposed)
    assert call(made.place, str(made.folder / "wrong"), "--model", Shelf(made.place).resolve("federated")) == 1
    assert re.search(r"cannot be loaded|differs from the live model by \d", capsys.readouterr().err)
    assert not [path for path in made.folder.iterdir() if "wrong" in path.name]


def test_a_wrong_graph_is_found_and_nothing_is_left(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = exporting.graft

    def wrong(encoder: Path, file: Path, adapter: Any) -> None:
        layout, vector = adapter
        right(encoder, file, (layout, vector * np.float32(1.001)))

    monkeypatch.setattr(exporting, "graft", wrong)
    monkeypatch.setattr(exporting, "check_folder", lambda *_: None)  # it was right
    name = Shelf(made.place).resolve("federated")
    assert call(made.place, str(made.folder / "wrong"), "--model", name, "--onnx") == 1
    assert re.search(r"ONNX graph differs from the live model by \d", capsys.readouterr().err)
    assert not [path for path in made.folder.iterdir() if "wrong" in path.name]


def quality(model: str) -> QualityLine:
    return QualityLine(model=model, metric="nDCG@10", mean=0.614, low=0.55, high=0.67, questions=84)


def test_quality_is_told_of_the_version_that_was_judged(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    report = EvaluateReport(
        site="a", rows=80, run="winter", version=1, examples=[], warnings=[],
        lines=[quality("base"), quality("federated")],
    )  # fmt: skip
    made.place.evaluation_file.write_text(report.model_dump_json())
    subject = exporting._subject(exporting.Workspace(made.place, made.place.settings()), Shelf(made.place), "winter-1")
    models = Shelf(made.place).models
    found = exporting.model_card.judged(made.place, subject, models)
    text = exporting.model_card.card(subject, made.folder, found, 256, [])
    assert "| federated | nDCG@10 | 61.4 | 55.0 to 67.0 | 84 |" in text
    made.place.evaluation_file.write_text(report.model_copy(update={"version": 2}).model_dump_json())
    assert exporting.model_card.judged(made.place, subject, models) is None
    made.place.evaluation_file.unlink()


@pytest.mark.parametrize(
    ("where", "model", "said"),
    [
        ("home/a/state/out", "base", "lies in the folder of this site's state"),
        ("none/out", "base", "there is no folder"),
        ("plain", "base", "is not empty; --force replaces an earlier export"),
        ("home", "base", "is not empty"),
        ("new", "winter-7", "there is no model 'winter-7' here; here are: base, "),
        ("new", "12", "there is no model '12' here"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    made: Made, where: str, model: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(made.place, str(made.folder / where), "--model", model) == 1
    assert said in capsys.readouterr().err
    assert not (made.folder / "new").exists()


def test_a_model_over_another_base_is_refused(tmp_path: Path, graphs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, layout = make_place(tmp_path, graphs), Layout(0)
    other = StoredAdapter(Recipe(base_model="0" * 64), 1, lively(layout), layout)
    Shelf(place).put(other, "alone", accepted=True, reason="")
    assert call(place, str(tmp_path / "out"), "--model", "alone") == 1
    assert "set base_model in site.toml" in capsys.readouterr().err


@needs_root
def test_a_disk_without_room_is_said_before_anything_is_written(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with volume(tmp_path / "disk", 50) as disk:
        assert call(made.place, str(disk.path / "out"), "--model", "base") == 1
        assert re.search(r"52\.\d MB are free in .*disk, and about 1\d\d\.\d MB are needed", capsys.readouterr().err)
        assert not list(disk.path.iterdir())


@needs_outside
def test_the_retriever_shows_two_models_side_by_side(made: Made, outside: dict[str, Any]) -> None:
    head, *columns = outside["printed"].strip().split("\n\n")
    assert re.fullmatch(rf"\d+ passages; {QUESTION}", head)
    assert [column.splitlines()[0] for column in columns] == [str(made.folder / name) for name in ("base", "plain")]
    for column in columns:
        hits = re.findall(r"^  (0\.\d{3})  (\S+\.md: .+)$", column, re.MULTILINE)
        assert len(hits) == 3
        assert hits == sorted(hits, reverse=True, key=lambda hit: float(hit[0]))
        assert re.search("card|machine", hits[0][1])
    assert columns[0].splitlines()[1:] != columns[1].splitlines()[1:]
