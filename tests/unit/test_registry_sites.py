"""Sites and invitations in the server's memory: open, used, expired; enrolled in one step or not at all."""

import threading
import time
from pathlib import Path

import pytest
from nexus_common.errors import NexusError
from nexus_server.records import Invitation, SiteRow
from nexus_server.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def site(name: str, key: bytes = b"") -> SiteRow:
    key = key or name.encode()
    return SiteRow(name, key, b"pem", key, b"certificate", time.time() + 9e6, time.time(), None, None)


def invitation(site: str, secret: bytes, expires: float) -> Invitation:
    return Invitation(secret, site, time.time(), expires, None, f"Controller of {site}", f"Dr {site}")


def test_an_invitation_is_open_until_its_site_is_seen(registry: Registry) -> None:
    registry.invite(invitation("a", b"secret", time.time() + 60))
    assert registry.open_invitations() == ["a"]
    registry.enrol(site("a"), b"secret", b"request")
    assert registry.open_invitations() == ["a"], "the answer may have been lost, so it may come again"
    registry.note_seen({"a": time.time()})
    assert registry.open_invitations() == []


def test_an_expired_invitation_is_not_open_and_still_known(registry: Registry) -> None:
    registry.invite(invitation("a", b"secret", time.time() - 1))
    assert registry.open_invitations() == []
    found = registry.invitation(b"secret")
    assert found is not None
    assert (found.site, found.request_hash) == ("a", None)


def test_a_newer_invitation_ends_the_older_one(registry: Registry) -> None:
    registry.invite(invitation("a", b"old", time.time() + 60))
    registry.invite(invitation("a", b"new", time.time() + 60))
    assert registry.invitation(b"old") is None
    assert [one.secret_hash for one in registry.invitations()] == [b"new"]


def test_a_used_invitation_remembers_the_request(registry: Registry) -> None:
    registry.invite(invitation("a", b"secret", time.time() + 60))
    registry.enrol(site("a"), b"secret", b"request")
    found = Registry(registry.folder).invitation(b"secret")
    assert found is not None
    assert found.request_hash == b"request"


def test_a_site_with_the_keys_of_another_is_not_enrolled_and_uses_no_invitation(registry: Registry) -> None:
    for name in ("a", "b"):
        registry.invite(invitation(name, name.encode(), time.time() + 60))
    registry.enrol(site("a", b"key"), b"a", b"request")
    with pytest.raises(NexusError, match="UNIQUE"):
        registry.enrol(site("b", b"key"), b"b", b"request")
    assert [row.name for row in registry.sites()] == ["a"]
    found = registry.invitation(b"b")
    assert found is not None
    assert found.request_hash is None


def test_what_was_noted_of_a_site_is_kept(registry: Registry) -> None:
    registry.enrol(site("a"), b"", b"")
    registry.note_seen({"a": 12.5, "unknown": 1.0})
    registry.note_readiness("a", "ready")
    (row,) = Registry(registry.folder).sites()
    assert (row.last_seen, row.readiness) == (12.5, "ready")


def test_many_threads_may_write_at_once(registry: Registry) -> None:
    def enrol(number: int) -> None:
        registry.enrol(site(f"site-{number}"), b"", b"")
        registry.note_seen({f"site-{number}": float(number)})

    threads = [threading.Thread(target=enrol, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row.name: row.last_seen for row in registry.sites()} == {f"site-{i}": float(i) for i in range(16)}
