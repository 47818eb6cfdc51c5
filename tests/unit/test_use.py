"""``use`` and ``status``: a person's word stands above the hold-out's, and both are told apart."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nexus_client.cli import main
from nexus_client.policy import write_policy
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_common import audit, certs
from nexus_common.versions import StoredAdapter

from tests.plans import identity_of, make_plan

PLAN = make_plan("abc", name="winter")


@pytest.fixture
def place(tmp_path: Path) -> SiteHome:
    """A site with two versions, a personal model, and a choice."""
    place = SiteHome.of(tmp_path, "a")
    place.keys.mkdir(parents=True)
    certs.save_key(place.keys / "identity.key", identity_of("a"))
    place.write_settings("127.0.0.1:1", [])
    write_policy(place.policy_file, "a")
    shelf = Shelf(place)
    shelf.put(version(5), "federated", accepted=True, reason="better than the base model", chosen=True)
    shelf.put(version(6), "federated", accepted=False, reason="worse than winter-5 (-4.0)")
    shelf.put(version(7), "personal", accepted=True, reason="not worse than the base model")
    return place


def version(number: int) -> StoredAdapter:
    layout = PLAN.adapter.layout
    return StoredAdapter(PLAN, number, np.full(layout.dim, number, np.float32), layout)


def run(place: SiteHome, *argv: str) -> int:
    return main(["--home", str(place.settings_folder.parent), *argv])


def status(place: SiteHome, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(place, "--json", "status") == 0
    found = json.loads(capsys.readouterr().out)
    return {name: found[name] for name in ("in_use", "pinned", "why", "refused")}


def test_status_says_what_is_in_use_why_and_what_was_not_taken(
    place: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(place, capsys) == {
        "in_use": "winter-5",
        "pinned": False,
        "why": "better than the base model",
        "refused": "winter-6: worse than winter-5 (-4.0)",
    }
    assert run(place, "status") == 0
    shown = capsys.readouterr().out
    assert "in use: winter-5 (chosen: better than the base model)" in shown
    assert "not taken: winter-6: worse than winter-5 (-4.0)" in shown


@pytest.mark.parametrize(("asked", "named"), [("base", "base"), ("6", "winter-6"), ("winter-6", "winter-6")])
def test_a_person_may_use_what_the_hold_out_would_not_and_follow_it_again(
    place: SiteHome, capsys: pytest.CaptureFixture[str], asked: str, named: str
) -> None:
    assert run(place, "use", asked, "--by", "Kim") == 0
    assert f"search and serve stay on {named}" in capsys.readouterr().out
    found = status(place, capsys)
    assert (found["in_use"], found["pinned"]) == (named, True)
    assert found["why"] == "a person said so; the hold-out would choose winter-5"
    assert run(place, "use", "auto") == 0
    assert "which chooses winter-5" in capsys.readouterr().out
    assert status(place, capsys)["in_use"] == "winter-5"
    used = [(e["model"], e["by"]) for e in audit.read(place.audit_file) if e["event"] == "use"]
    assert used == [(named, "Kim"), ("auto", "administrator")]


def test_a_kind_is_its_newest(place: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "--json", "use", "personal") == 0
    assert json.loads(capsys.readouterr().out)["in_use"].startswith("personal-")


@pytest.mark.parametrize(("asked", "told"), [("alone", "no alone model here yet"), ("9", "no model '9' here")])
def test_what_is_not_here_is_named_with_what_is(
    place: SiteHome, capsys: pytest.CaptureFixture[str], asked: str, told: str
) -> None:
    assert run(place, "use", asked) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "here are: base, winter-5, winter-6, personal-" in error
    assert "use" not in {line["event"] for line in audit.read(place.audit_file)}


def test_status_loads_no_torch() -> None:
    """It is asked for often, on small boards."""
    code = "import sys, nexus_client.status, nexus_client.cli_use; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_version_that_comes_again_has_the_name_that_it_had(place: SiteHome) -> None:
    shelf = Shelf(place)
    for number in range(8, 12):
        shelf.put(version(number), "federated", accepted=True, reason="a test's", chosen=True)
    assert "winter-6" in shelf.models.gone
    assert shelf.put(version(6), "federated", accepted=True, reason="rolled back to") == "winter-6"
    assert shelf.resolve("6") == shelf.resolve("winter-6") == "winter-6"
    other = StoredAdapter(PLAN, 5, version(12).vector, PLAN.adapter.layout)
    assert shelf.put(other, "federated", accepted=True, reason="another's") != "winter-5"


def test_names_of_an_older_list_may_mean_anything(place: SiteHome) -> None:
    shelf = Shelf(place)
    told = json.loads(shelf.file.read_text())
    del told["indexed"]
    shelf.file.write_text(json.dumps(told | {"gone": ["winter-3"]}))
    assert shelf.models.gone == {"winter-3": ""}
    assert shelf.put(version(3), "federated", accepted=True, reason="a test's") != "winter-3"


def test_what_clients_get_is_told_where_it_is_not_what_is_in_use(
    place: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    Shelf(place).serve()
    Shelf(place).choose("personal-" + version(7).digest[:8])
    assert run(place, "status") == 0
    assert "nexus, which clients of `serve` ask for: winter-5, until a person says otherwise" in capsys.readouterr().out
    assert run(place, "use", "6") == 0
    told = capsys.readouterr().out
    assert "nexus, which clients of `serve` ask for, means winter-6 (before: winter-5, and vectors" in told
    assert run(place, "status") == 0
    assert "clients of `serve`" not in capsys.readouterr().out
