"""A site's folders with a little text and some models on its shelf, for what searches and serves."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from nexus_client.model_list import Kind
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_common.layout import Layout, Vector
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter

from tests.plans import make_plan

WINTER = make_plan(["a", "b", "c"], name="winter")
TOPICS = (
    "chest pain",
    "a lost bank card",
    "a broken wrist",
    "a loan for a house",
    "a child's fever",
    "a locked account",
)


def make_site(home: Path, graphs: Path, *, rows: Iterable[dict[str, Any]] | None = None, **settings: Any) -> SiteHome:
    """Site ``a`` under ``home``; its encoder's graph is the tests' own."""
    place = SiteHome.of(home, "a")
    place.state.mkdir(parents=True)
    (place.state / "onnx").symlink_to(graphs.parent)
    told = {"site": "a", "server": "127.0.0.1:1", "cpu_threads": 1} | settings
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())
    place.settings_file.write_text(f'{lines}[[data]]\npath = "rows.jsonl"\n')
    write_text(place, rows)
    return place


def write_text(place: SiteHome, rows: Iterable[dict[str, Any]] | None = None) -> None:
    """Its data file: as they are given, else a question and an answer on each topic."""
    if rows is None:
        rows = ({"query": f"what about {one}", "passage": f"advice on {one}"} for one in TOPICS)
    (place.settings_folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def some_vector(layout: Layout, seed: int = 0) -> Vector:
    """Near the one at birth, but everything in it at work."""
    rng = np.random.default_rng(seed)
    return (layout.first_vector(b"seed") + rng.normal(0, 0.03, layout.dim)).astype(np.float32)


def put_model(place: SiteHome, layout: Layout, seed: int = 0, kind: Kind = "personal", number: int = 1) -> str:
    """A made-up model on the shelf; its name.  Federated ones are versions of run ``winter``."""
    recipe = WINTER if kind == "federated" else Recipe()
    stored = StoredAdapter(recipe, number, some_vector(layout, seed), layout)
    return Shelf(place).put(stored, kind, accepted=True, reason="a test's")
