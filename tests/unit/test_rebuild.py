"""A lost server made again: only from a federated version, and its run goes on from there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from nexus_common.errors import NexusError
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter
from nexus_server.cli import main
from nexus_server.rebuild import adopt, read_version
from nexus_server.records import RUNNING, STOPPED, Run
from nexus_server.registry import Registry

from tests.federation.test_rounds import Federation, plan_of

NAMES = ("bank-a", "bank-b", "hospital-a", "hospital-b")
PLAN = plan_of(NAMES)
VECTOR = PLAN.adapter.layout.first_vector(bytes(8)) + np.float32(0.25)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    StoredAdapter(PLAN, 3, VECTOR, PLAN.adapter.layout).write(tmp_path / "federated.safetensors")
    return tmp_path / "federated.safetensors"


def test_a_sites_version_is_read(file: Path) -> None:
    found = read_version(file)
    assert (found.plan, found.number) == (PLAN, 3)
    np.testing.assert_array_equal(found.vector, VECTOR)


def test_what_is_no_federated_version_is_said(file: Path) -> None:
    StoredAdapter(Recipe(), 3, VECTOR, PLAN.adapter.layout).write(file.with_name("alone.safetensors"))
    file.with_name("cut.safetensors").write_bytes(file.read_bytes()[:-1])
    for name, said in (
        ("alone.safetensors", "belongs to no plan"),
        ("cut.safetensors", "is damaged"),
        ("missing.safetensors", r"does not exist; at a site it is state/federated\.safetensors"),
    ):
        with pytest.raises(NexusError, match=said):
            read_version(file.with_name(name))


def test_init_from_a_version_has_its_run_stopped_where_the_site_stood(file: Path) -> None:
    home = file.parent / "server"
    assert main(["init", "--home", str(home), "--from-version", str(file)]) == 0
    registry = Registry(home / "state")
    assert registry.last_run() == Run(PLAN, STOPPED, 3, 0, 0, None)
    assert registry.plan(PLAN.name) == PLAN
    np.testing.assert_array_equal(registry.vector(PLAN.name, 3), VECTOR)


def test_an_init_that_was_cut_short_asks_the_sites_for_newer_versions_too(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(registry: Registry) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "note_restored", killed)
        adopt(file.parent / "state", read_version(file))
    adopt(file.parent / "state", read_version(file))
    assert Registry(file.parent / "state").recall_due(PLAN.name)


def test_init_from_a_faulty_version_makes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(b"nonsense")
    home = file.parent / "server"
    assert main(["init", "--home", str(home), "--from-version", str(file)]) == 1
    assert "federated.safetensors is damaged" in capsys.readouterr().err
    assert not home.exists()


def test_a_run_that_was_adopted_is_trained_to_its_end(tmp_path: Path) -> None:
    whole, lost = Federation(tmp_path / "whole", PLAN), Federation(tmp_path / "lost", PLAN)
    whole.turns(7)
    lost.turns(3)
    vector = np.array(lost.registry.vector(PLAN.name, lost.round))
    version = StoredAdapter(PLAN, lost.round, vector, PLAN.adapter.layout)
    lost.registry.close()
    shutil.rmtree(tmp_path / "lost")
    adopt(tmp_path / "lost", version)
    again = Federation(tmp_path / "lost", PLAN)
    again.registry.set_state(PLAN.name, RUNNING, expected=STOPPED)
    again.turns(5)  # in the first it asks what the sites hold
    assert (again.state, again.round) == (whole.state, whole.round)
    found, expected = (one.registry.vector(PLAN.name, 5) for one in (again, whole))
    np.testing.assert_allclose(found, expected, atol=1e-4)  # coins are never the same
