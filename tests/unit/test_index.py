"""A site's index: what it finds is what each model would find, and an update does no more than is due."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from nexus_client import index_build, index_generation, scan
from nexus_client.index import Generation, open_current
from nexus_client.index_build import Built, building, graph_of
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import PLAIN, LightAdapter, pooled
from nexus_client.light_models import light_model
from nexus_client.model_list import Gone
from nexus_client.search import answering, hits, search_site
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome, default_base
from nexus_client.snapshot import Snapshots
from nexus_client.vectors import Vectors
from nexus_common.base_model import base_hash
from nexus_common.errors import NexusError
from nexus_common.layout import Layout

from tests.sites import TOPICS, WINTER, make_site, put_model, some_vector, write_text


@pytest.fixture
def place(tmp_path: Path, graphs: Path) -> SiteHome:
    return make_site(tmp_path, graphs)


def build(place: SiteHome, asked: Iterable[str] = ()) -> Built:
    with building(place, asked) as one:
        return one.run()


def generation(place: SiteHome) -> Generation:
    found = open_current(place.index_folder)
    assert found is not None
    return found


def encoder(place: SiteHome) -> LightEncoder:
    with building(place) as one:
        return LightEncoder(graph_of(place, one.settings, one.base), one.settings.base_folder, 1)


LAYOUTS = {
    "linear": Layout(),
    "dendrites": Layout(2),
    "salience": Layout(0, 0),
    "all": Layout(1, 1, "sigmoid"),
}


@pytest.mark.parametrize("many", [False, True], ids=["few rows", "many rows"])
def test_each_model_finds_in_the_index_what_it_finds_without(
    place: SiteHome, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:  # a sketch, as of more than 20,000 rows
        monkeypatch.setattr(index_generation, "SCANNED_ROWS", 3)
        monkeypatch.setattr(scan, "RESCORED", 5)
    names = {what: put_model(place, layout) for what, layout in list(LAYOUTS.items())[:3]}
    names["all"] = put_model(place, LAYOUTS["all"], kind="federated")
    build(place, names.values())
    index, light = generation(place), encoder(place)
    assert set(index.manifest.models) == {"base", *names.values()}
    texts = [f"advice on {topic}" for topic in TOPICS]
    for name in ("base", *names.values()):
        adapter = light_model(Shelf(place), name, index.manifest.base)
        ids = light.pieces(["pain in my chest", *texts]).ids
        vectors = np.stack([pooled(adapter, light.encode(one, states=True)) for one in ids])
        vectors = vectors if adapter is None else adapter.project(vectors)
        scores = vectors[1:] @ vectors[0]
        count = 3 if many else 5  # a sketch finds the nearest, and not surely the fifth of six
        found = hits(index, light, name, adapter, "pain in my chest", count)
        assert found[0].text == texts[int(scores.argmax())]
        np.testing.assert_allclose([hit.score for hit in found], np.sort(scores)[::-1][:count], atol=1e-3)


def test_an_update_encodes_only_new_texts_and_forgets_the_old(place: SiteHome) -> None:
    first = build(place)
    assert (first.rows, first.added, first.encoded) == (6, 6, 6)
    assert not build(place).changed
    write_text(place, [{"text": "advice on chest pain", "label": "x"}, {"text": "new", "label": "y"}])
    second = build(place)
    assert (second.rows, second.added, second.removed, second.encoded) == (2, 1, 5, 1)
    folders, newest = [one.name for one in place.index_folder.iterdir() if one.is_dir()], generation(place).name
    assert sorted(folders) == [newest, "vectors"]
    left = b"".join(file.read_bytes() for file in (place.index_folder / newest).iterdir())
    assert b"advice on a loan" not in left
    with building(place) as one:
        assert one.vectors.missing([PLAIN], ["new", "advice on a loan for a house"]) == ["advice on a loan for a house"]


def test_models_that_share_a_head_share_its_vectors(place: SiteHome) -> None:
    build(place)
    linear, dendritic = put_model(place, Layout()), put_model(place, Layout(1), kind="alone")
    found = build(place, [linear, dendritic])
    assert (found.encoded, set(generation(place).manifest.models.values())) == (0, {PLAIN})
    salience = put_model(place, Layout(0, 0), kind="federated")
    found = build(place, [salience])
    assert found.encoded == 6, "another way to pool needs the encoder once more"
    assert set(generation(place).manifest.models) == {"base", linear, dendritic, salience}


def test_while_a_changed_head_is_encoded_the_old_model_answers(place: SiteHome) -> None:
    shelf, before = Shelf(place), put_model(place, Layout())
    shelf.choose(before)
    build(place)
    shelf.choose(put_model(place, Layout(0, 0), kind="federated"))
    assert answering(shelf.models, generation(place)) == before
    build(place)
    assert answering(shelf.models, generation(place)) == "winter-1"
    shelf.call_back(WINTER, 0)
    assert answering(shelf.models, generation(place)) == "base"


def test_a_search_updates_what_is_little_and_says_what_is_not(place: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search_site(place, "thorax hurts", 2, None, lambda _: lambda *_: None)
    assert (found.model, len(found.hits), found.hits[0].text) == ("base", 2, "advice on chest pain")
    assert (found.hits[0].file, found.hits[0].line) == ("rows.jsonl", 1)
    kept = {"text": "advice on chest pain", "label": "x"}
    write_text(place, [kept, *({"text": f"number {i}", "label": "x"} for i in range(5))])
    monkeypatch.setattr("nexus_client.search.LITTLE", 4)
    found = search_site(place, "thorax hurts", 1, None, lambda _: lambda *_: None)
    assert found.hits[0].text == "advice on chest pain"
    assert found.note == "5 texts are not in the index yet: `nexus-client index` encodes them"
    monkeypatch.setattr("nexus_client.search.LITTLE", 5)
    assert "number" in search_site(place, "number 3", 1, None, lambda _: lambda *_: None).hits[0].text


def test_a_search_does_not_wait_for_another_process_that_builds(place: SiteHome) -> None:
    build(place)
    write_text(place, [{"text": "new", "label": "x"}])
    with building(place):
        found = search_site(place, "fever", 1, None, lambda _: lambda *_: None)
    assert found.hits[0].text == "advice on a child's fever"
    assert found.note == "another process is updating the index; this is from the one before"


def test_a_model_whose_head_is_not_in_the_index_names_the_remedy(place: SiteHome) -> None:
    build(place)
    name = put_model(place, Layout(0, 0))
    with pytest.raises(NexusError, match=f"`nexus-client index --model {name}` encodes them"):
        search_site(place, "fever", 1, name, lambda _: lambda *_: None)
    with pytest.raises(NexusError, match="there is no model 'nonsense' here; here are: base, personal-"):
        search_site(place, "fever", 1, "nonsense", lambda _: lambda *_: None)
    build(place, [name])
    assert search_site(place, "fever", 1, "personal", lambda _: lambda *_: None).model == name
    write_text(place, [{"text": "x", "label": "x"}])
    assert name in build(place).models, "what was asked for stays"


def test_headings_of_documents_are_sections(place: SiteHome) -> None:
    folder = place.settings_folder / "handbook"
    folder.mkdir()
    (folder / "cards.md").write_text("# Cards\n\nIntroduction.\n\n## A card that is lost\n\nBlock it at once.\n")
    with place.settings_file.open("a") as file:
        file.write('[[data]]\npath = "handbook"\n')
    (hit,) = search_site(place, "block it at once", 1, None, lambda _: lambda *_: None).hits
    assert (hit.file, hit.line, hit.section) == ("handbook/cards.md", 5, "A card that is lost")


def test_all_of_it_is_as_private_as_the_text(place: SiteHome) -> None:
    build(place, [put_model(place, Layout(1))])
    for path in [place.index_folder, *place.index_folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600) or path.name == "CURRENT", path


def test_a_damaged_index_names_the_remedy(place: SiteHome) -> None:
    build(place)
    current = generation(place).name
    for name in ("manifest.json", "head-plain.npy", "offsets.npy"):
        file = place.index_folder / current / name
        good = file.read_bytes()
        file.write_bytes(good[: len(good) // 2])
        with pytest.raises(NexusError, match=r"is damaged .* makes it again"):
            open_current(place.index_folder)
        file.write_bytes(good)
    (place.index_folder / "CURRENT").write_text("00000009")
    with pytest.raises(NexusError, match="is damaged"):
        open_current(place.index_folder)
    found = build(place)
    assert (found.rows, found.encoded) == (6, 0), "it is made again of the vectors that were kept"
    assert len(generation(place).texts) == 6


def test_a_model_of_another_base_is_left_out_and_named(place: SiteHome) -> None:
    from nexus_common.recipe import Recipe
    from nexus_common.versions import StoredAdapter

    from tests.sites import some_vector

    stored = StoredAdapter(Recipe(base_model="0" * 64), 1, some_vector(Layout()), Layout())
    name = Shelf(place).put(stored, "alone", accepted=True, reason="")
    Shelf(place).choose(name)
    found = build(place)
    assert "belongs to base model 000000000000" in found.left_out[name]
    assert not build(place).changed, "it is not tried again and again"


def test_search_and_index_load_no_torch(place: SiteHome) -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "flwr", "scipy", "matplotlib"}
    script = (
        "import sys; from nexus_client.cli import main; code = main(sys.argv[1:]); "
        f"sys.exit(code or sorted({heavy!r} & set(sys.modules)) or 0)"
    )
    home = place.settings_folder.parent
    for command in (["index"], ["search", "fever", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "--home", str(home), *command],
            capture_output=True, text=True, check=False, env=os.environ,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hits"][0]["text"] == "advice on a child's fever"


@pytest.mark.parametrize("layout", [Layout(), Layout(1)], ids=["linear", "dendrites"])
def test_a_name_that_means_other_numbers_is_indexed_anew(place: SiteHome, layout: Layout) -> None:
    name = put_model(place, layout, 1, "federated", 6)
    build(place, [name])
    Shelf(place).file.unlink()  # as the error about a damaged list advises
    assert put_model(place, layout, 2, "federated", 6) == name
    assert answering(Shelf(place).models, generation(place)) == "base"
    assert build(place, [name]).changed
    model, asked = LightAdapter(layout, some_vector(layout, 2)), encoder(place)
    found = {hit.text: hit.score for hit in hits(generation(place), asked, name, model, "chest pain", 6)}
    query = model.project(asked.base_embeddings(["chest pain"]))[0]
    for text, score in found.items():
        assert score == pytest.approx(float(model.project(asked.base_embeddings([text]))[0] @ query), abs=2e-3)


@pytest.mark.parametrize("gone", ["empty", "deleted"])
def test_text_that_was_deleted_leaves_the_index_also_with_its_whole_file(place: SiteHome, gone: str) -> None:
    build(place)
    file = place.settings_folder / "rows.jsonl"
    file.write_text("") if gone == "empty" else file.unlink()
    found = build(place)
    assert (found.rows, found.removed) == (0, 6)
    assert len(generation(place)) == 0
    (vectors,) = (place.index_folder / "vectors").iterdir()
    held = Vectors(vectors)
    assert len(held.missing([PLAIN], [f"advice on {one}" for one in TOPICS])) == 6
    held.close()
    assert search_site(place, "fever", 3, None, lambda _: lambda *_: None).hits == []
    write_text(place)
    assert build(place).rows == 6
    file.write_text("no JSON\n")
    with pytest.raises(NexusError, match=r"rows\.jsonl"):
        build(place)
    assert len(generation(place)) == 6, "a file that cannot be read is no reason to forget"


def test_a_model_that_was_damaged_is_taken_in_once_it_is_mended(place: SiteHome) -> None:
    name = put_model(place, Layout())
    Shelf(place).choose(name)
    file = Shelf(place).file_of(name)
    good = file.read_bytes()
    file.write_bytes(good[:100])
    assert "is damaged" in build(place).left_out[name]
    file.write_bytes(good)
    assert build(place).models == ("base", name)
    assert answering(Shelf(place).models, generation(place)) == name


def test_a_running_search_sees_an_index_that_was_made_again(place: SiteHome) -> None:
    build(place)
    snapshots = Snapshots(place, generation(place).manifest.base)
    shutil.rmtree(place.index_folder)
    write_text(place, [{"text": "new", "label": "x"}])
    build(place)
    assert snapshots.refresh()
    assert snapshots.current.generation is not None
    assert snapshots.current.generation.texts == {"new"}


def test_what_nexus_means_changes_only_when_a_person_says_so(place: SiteHome) -> None:
    shelf = Shelf(place)
    put_model(place, Layout(), 1, "federated", 5)
    six = put_model(place, Layout(), 2, "federated", 6)
    shelf.pin(six)
    snapshots = Snapshots(place, base_hash(default_base()))
    assert snapshots.current.model("nexus")[0] == six
    shelf.call_back(WINTER, 5)
    assert snapshots.refresh()
    with pytest.raises(Gone, match=f"nexus means {six}, which is no longer held here, until a person says otherwise"):
        snapshots.current.model("nexus")
    assert shelf.serve() == six
    shelf.pin("winter-5")
    assert snapshots.refresh()
    assert snapshots.current.model("nexus")[0] == "winter-5"


KEPT = [{"text": f"advice on {topic}", "label": "x"} for topic in TOPICS[1:]]
NEW = {"text": "something new", "label": "x"}


def test_text_that_was_deleted_is_found_no_more_while_other_text_is_encoded(place: SiteHome) -> None:
    put_model(place, Layout(0, 0))
    build(place)
    write_text(place, [*KEPT, NEW])
    Shelf(place).choose(put_model(place, Layout(0, 0), seed=3))  # and all is encoded once more
    seen = list[set[str]]()
    with building(place) as one:
        one.run(lambda *_: seen.append(generation(place).texts))
    assert seen[0] == {row["text"] for row in KEPT}
    assert generation(place).texts == {row["text"] for row in [*KEPT, NEW]}


def test_where_most_text_was_replaced_the_old_answers_until_the_new_is_encoded(place: SiteHome) -> None:
    build(place)
    before, seen = generation(place).texts, list[set[str]]()
    write_text(place, [KEPT[0], *({"text": f"number {i}", "label": "x"} for i in range(5))])
    with building(place) as one:
        one.run(lambda *_: seen.append(generation(place).texts))
    assert seen[0] == before


def test_a_search_that_encodes_nothing_forgets_what_was_deleted(
    place: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(place)
    monkeypatch.setattr("nexus_client.search.LITTLE", 0)
    write_text(place, [*KEPT, NEW])
    found = search_site(place, "chest pain", 9, None, lambda _: lambda *_: None)
    assert {hit.text for hit in found.hits} == {row["text"] for row in KEPT}
    assert found.note is not None


def test_text_that_changes_while_it_is_encoded_is_read_again(place: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, "ENCODED_AT_ONCE", 2)
    last = [{"text": f"number {i}", "label": "x"} for i in range(4)]

    def change(done: int, _: int) -> None:
        if done == 2:
            write_text(place, last)

    with building(place) as one:
        found = one.run(change)
    assert generation(place).texts == {row["text"] for row in last}
    assert found.rows == 4


def test_what_search_answers_from_stays_however_many_versions_come(place: SiteHome) -> None:
    shelf = Shelf(place)
    shelf.choose(put_model(place, Layout(0, 0), kind="federated", number=1))
    build(place)
    for number in range(2, 8):
        shelf.choose(put_model(place, Layout(0, 0), seed=number, kind="federated", number=number))
        assert answering(shelf.models, generation(place)) == "winter-1", "7 is not in the index yet"
    build(place)
    assert answering(shelf.models, generation(place)) == "winter-7"
    put_model(place, Layout(0, 0), seed=8, kind="federated", number=8)
    assert shelf.models.named("winter-1") is None


def test_what_the_index_is_made_for_stays_as_well(place: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(place)

    def more(*_: int) -> None:
        for number in range(2, 8):
            shelf.choose(put_model(place, Layout(0, 0), seed=number, kind="federated", number=number))

    shelf.choose(put_model(place, Layout(0, 0), kind="federated", number=1))
    with building(place) as one:
        one.run(more)
    assert answering(shelf.models, generation(place)) == "winter-1"
