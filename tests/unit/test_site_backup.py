"""A site in one file: what is in it, what is not, and that no approval outlives a restore."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client import site
from nexus_client.backup import back_up, restore
from nexus_client.consent import Consent
from nexus_client.model_list import BASE, Models
from nexus_client.policy import change_policy, read_policy, write_policy
from nexus_client.record import ProtocolRecord
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_common import audit, certs
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Layout
from nexus_server.backup import restore as restore_server

from tests.plans import make_plan, member
from tests.sites import put_model


@pytest.fixture
def place(tmp_path: Path) -> SiteHome:
    """Site ``a`` with an approved plan, a model in use, and a record of what was opened."""
    place = SiteHome.of(tmp_path / "home", "a")
    place.keys.mkdir(parents=True)
    key = Ed25519PrivateKey.generate()
    certs.save_key(place.keys / "identity.key", key)
    certs.save_key(place.keys / "transport.key", certs.new_transport_key())
    place.write_settings("127.0.0.1:1", [])
    write_policy(place.policy_file, "a")
    plan = make_plan((), name="winter", sites=[member("a", key), *(member(name) for name in ("b", "c"))])
    change_policy(place.policy_file, accept_no_record_privacy=True, min_rows=77)
    Consent(place).offer(plan.canonical)
    change_policy(place.policy_file, "winter, approved by Dr X", approved_plans=[plan.hash.hex()])
    name = put_model(place, Layout())
    Shelf(place).choose(name, "a test's")
    ProtocolRecord(place.state / "protocol.sqlite").close()
    (place.state / "cache").mkdir()
    (place.state / "cache" / "embeddings").write_bytes(b"as private as text")
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_restored_site_is_itself_without_approvals_record_or_cache(place: SiteHome, tmp_path: Path) -> None:
    *_, head = back_up(place, tmp_path / "site.tar")
    assert audit.verify(place.audit_file).hash == head
    again, _, ended = restore(tmp_path / "site.tar", tmp_path / "again", None)
    assert (again.site, ended) == ("a", ["winter"])
    assert again.settings_file.read_bytes() == place.settings_file.read_bytes()
    assert (again.keys / "identity.key").read_bytes() == (place.keys / "identity.key").read_bytes()
    old, new = read_policy(place.policy_file), read_policy(again.policy_file)
    assert new == old.model_copy(update={"approved_plans": ()})
    plan = Consent(again).find("winter")
    with pytest.raises(Refusal, match="plan-not-approved"):
        Consent(again).require(plan)
    assert Shelf(again).models == Shelf(place).models
    assert Shelf(again).models.in_use != BASE
    assert Shelf(again).load(Shelf(again).models.in_use) is not None
    assert sorted(path.name for path in again.state.iterdir()) == ["audit.jsonl", "keys", "models", "plans"]
    *_, last = audit.read(again.audit_file)
    assert (last["event"], last["approvals_ended"]) == ("restored", [plan.hash.hex()])
    audit.verify(again.audit_file)


def test_a_list_of_models_that_changes_meanwhile_is_backed_up_as_it_was_read(
    place: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, reads = Shelf(place).models, list[int]()

    def changing(shelf: Shelf) -> Models:
        reads.append(1)
        return whole if len(reads) == 1 else Models()

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "models", property(changing))
        back_up(place, tmp_path / "site.tar")
    again, *_ = restore(tmp_path / "site.tar", tmp_path / "again", None)
    assert Shelf(again).models == whole
    assert all(Shelf(again).file_of(one.name).exists() for one in whole.held)


def test_only_its_owner_can_read_it(place: SiteHome, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        back_up(place, tmp_path / "site.tar")
        again, *_ = restore(tmp_path / "site.tar", tmp_path / "again", "a")
    finally:
        os.umask(old)
    paths = [tmp_path / "site.tar", again.state, *again.state.rglob("*")]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_on_a_new_box_the_service_may_go_to_what_was_restored(
    place: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    back_up(place, tmp_path / "site.tar")
    monkeypatch.setattr(site, "ETC", tmp_path / "box" / "etc")
    monkeypatch.setattr(site, "VAR", tmp_path / "box" / "var" / "nexus")
    old = os.umask(umask)
    try:
        again, *_ = restore(tmp_path / "site.tar", None, None)
    finally:
        os.umask(old)
    above = (tmp_path / "box", again.settings_folder.parent, again.state.parent.parent, again.state.parent)
    assert [mode(path) for path in above] == [0o755] * 4
    assert [mode(path) for path in (again.settings_folder, again.state)] == [0o700] * 2


def test_a_site_that_is_there_is_left_as_it_is(place: SiteHome, tmp_path: Path) -> None:
    back_up(place, tmp_path / "site.tar")
    before = place.policy_file.read_bytes()
    with pytest.raises(NexusError, match="is here already"):
        restore(tmp_path / "site.tar", tmp_path / "home", None)
    place.settings_file.unlink()
    with pytest.raises(NexusError, match="is here already"):
        restore(tmp_path / "site.tar", tmp_path / "home", None)
    assert place.policy_file.read_bytes() == before


def test_another_sites_backup_and_a_servers_are_refused(place: SiteHome, tmp_path: Path) -> None:
    back_up(place, tmp_path / "site.tar")
    with pytest.raises(NexusError, match="a backup of 'a', not of b"):
        restore(tmp_path / "site.tar", tmp_path / "again", "b")
    with pytest.raises(NexusError, match="a backup of 'nexus-client', not of nexus-server"):
        restore_server(tmp_path / "site.tar", tmp_path / "server")


def test_a_changed_backup_makes_nothing_and_the_next_try_is_clean(place: SiteHome, tmp_path: Path) -> None:
    back_up(place, tmp_path / "site.tar")
    data = bytearray((tmp_path / "site.tar").read_bytes())
    data[data.rindex(b"winter, approved by")] ^= 1
    (tmp_path / "changed.tar").write_bytes(data)
    with pytest.raises(NexusError, match=r"policy\.toml has not the bytes of its list"):
        restore(tmp_path / "changed.tar", tmp_path / "again", None)
    assert list((tmp_path / "again" / "a").iterdir()) == []
    (tmp_path / "again" / "a" / ".state.restoring" / "keys").mkdir(parents=True)  # as if killed in it
    restore(tmp_path / "site.tar", tmp_path / "again", None)
    assert (tmp_path / "again" / "a" / "site.toml").exists()


def test_a_policy_that_cannot_be_read_is_no_part_of_a_backup(place: SiteHome, tmp_path: Path) -> None:
    place.policy_file.write_text("participation = 3")
    with pytest.raises(Refusal, match="policy-invalid"):
        back_up(place, tmp_path / "site.tar")
