"""Adapters on a site's disk: what was stored comes back with its plan, and a damaged file is named with the remedy."""

import json
from pathlib import Path

import numpy as np
import pytest
from nexus_common.errors import NexusError
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter
from safetensors.numpy import save

from tests.plans import make_plan

PLAN = make_plan("abc")
LAYOUT = PLAN.adapter.layout
VECTOR = LAYOUT.first_vector(b"") + np.float32(0.5)
FACTS = {"plan": PLAN.canonical.decode(), "number": "7", "trained_on": "data"}
FACTS["layout"] = json.dumps({"projection": 0, "salience": LAYOUT.salience, "activation": "tanh"})


def read(folder: Path, data: bytes) -> StoredAdapter | None:
    path = folder / "federated.safetensors"
    path.write_bytes(data)
    return StoredAdapter.read(path)


def test_an_adapter_comes_back_with_its_plan(tmp_path: Path) -> None:
    StoredAdapter(PLAN, 7, VECTOR, LAYOUT, "data").write(tmp_path / "federated.safetensors")
    found = StoredAdapter.read(tmp_path / "federated.safetensors")
    assert found is not None
    assert (found.plan, found.number, found.trained_on) == (PLAN, 7, "data")
    np.testing.assert_array_equal(found.vector, VECTOR)


def test_a_sites_own_adapter_has_a_recipe_and_belongs_to_no_plan(tmp_path: Path) -> None:
    StoredAdapter(Recipe(), 3, VECTOR, LAYOUT, "data").write(tmp_path / "alone.safetensors")
    found = StoredAdapter.read(tmp_path / "alone.safetensors")
    assert found is not None
    assert found.recipe == Recipe()
    with pytest.raises(NexusError, match="belongs to no plan"):
        _ = found.plan


def test_a_newer_version_takes_the_place_of_the_older(tmp_path: Path) -> None:
    for number in (1, 2):
        StoredAdapter(PLAN, number, VECTOR, LAYOUT).write(tmp_path / "federated.safetensors")
    found = StoredAdapter.read(tmp_path / "federated.safetensors")
    assert found is not None
    assert found.number == 2
    assert [path.name for path in tmp_path.iterdir()] == ["federated.safetensors"]


def test_nothing_stored_is_nothing(tmp_path: Path) -> None:
    assert StoredAdapter.read(tmp_path / "federated.safetensors") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        save({"vector": VECTOR}, FACTS)[:-1],
        save({"vector": VECTOR}),
        save({"other": VECTOR}, FACTS),
        save({"vector": VECTOR}, {"plan": FACTS["plan"], "number": "7"}),
        save({"vector": VECTOR}, FACTS | {"number": "seven"}),
        save({"vector": VECTOR}, FACTS | {"plan": "{"}),
        save({"vector": VECTOR}, FACTS | {"plan": "{}"}),
        pytest.param(
            save({"vector": VECTOR[:-1]}, FACTS),
        ),
    ],
    ids=["empty", "noise", "cut", "no facts", "no vector", "no origin", "no number", "no JSON", "no plan", "length"],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(NexusError, match=r"federated\.safetensors is damaged .*delete it"):
        read(tmp_path, data)
