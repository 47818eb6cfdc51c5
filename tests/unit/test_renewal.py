"""Who gets a new certificate when, and what it takes for the server to count it."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.authorities import Authorities
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.exchange import Failure
from nexus_server.records import SiteRow
from nexus_server.registry import Registry
from nexus_server.renewal import Renewal

from tests.plans import identity_of

DAY, HOSTS = 86_400, ["127.0.0.1"]
SITES = {"bank-a": 121, "bank-b": 122, "hospital-a": 3}  # days left
Answer = Callable[[wire.Certify], wire.Message | Failure]


def stored(message: wire.Certify) -> wire.Message:
    return wire.Certified(hashlib.sha256(message.certificate).digest())


class Sites:
    """An exchange with sites that answer as they are told."""

    def __init__(self) -> None:
        self.connected, self.answer, self.asked = set(SITES), stored, list[str]()

    def alive(self) -> set[str]:
        return self.connected

    def ask(self, messages: Mapping[str, wire.Certify], _: float) -> dict[str, wire.Message | Failure]:
        self.asked += sorted(messages)
        return {site: self.answer(message) for site, message in messages.items()}


@pytest.fixture
def sites() -> Sites:
    return Sites()


@pytest.fixture
def renewal(tmp_path: Path, sites: Sites) -> Renewal:
    authority = CertificateAuthority.create(CertificateFiles(tmp_path / "keys"), "demo")
    registry, now = Registry(tmp_path), time.time()
    for name, days in SITES.items():
        key, identity = certs.new_transport_key().public_key(), certs.raw_identity(identity_of(name))
        pem = certs.pem(authority.issue(name, key, identity))
        expires = now + days * DAY + 60
        row = SiteRow(name, certs.key_hash(key), certs.public_pem(key), identity, pem, expires, now, None, None)
        registry.enrol(row, b"", b"")
    return Renewal(registry, sites, authority, AuditLog(tmp_path / "audit.jsonl"))  # type: ignore[arg-type]


def left(renewal: Renewal) -> dict[str, int]:
    return {row.name: int((row.expires - time.time()) // DAY) for row in renewal.registry.sites()}


def test_at_a_third_left_a_connected_site_gets_a_year_for_the_same_keys(renewal: Renewal, sites: Sites) -> None:
    before = {row.name: row for row in renewal.registry.sites()}
    renewal.renew()
    renewal.renew()
    assert sites.asked == ["bank-a", "hospital-a"]
    assert left(renewal) == {"bank-a": 364, "bank-b": 122, "hospital-a": 364}
    for row in renewal.registry.sites():
        assert (row.key_hash, row.identity) == (before[row.name].key_hash, before[row.name].identity)
        certificate = x509.load_pem_x509_certificate(row.certificate)
        assert certs.key_hash(certificate) == row.key_hash
        assert certs.site_and_identity(certificate) == (row.name, row.identity)


def test_a_site_that_is_away_gets_it_when_it_comes(renewal: Renewal, sites: Sites) -> None:
    sites.connected = {"bank-a"}
    renewal.renew()
    assert left(renewal)["hospital-a"] == 3
    sites.connected = set(SITES)
    renewal.renew()
    assert left(renewal)["hospital-a"] == 364


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: wire.Refused("bad-certificate"),
        lambda _: wire.Certified(bytes(32)),
        lambda _: wire.Readiness(wire.READY),
        lambda _: Failure("the client fell silent"),
    ],
    ids=["refused", "another certificate", "another answer", "silent"],
)
def test_what_a_site_does_not_confirm_is_not_counted_and_asked_again_later(
    renewal: Renewal, sites: Sites, answer: Answer
) -> None:
    sites.answer = answer  # type: ignore[assignment]
    renewal.renew()
    renewal.renew()
    assert sites.asked == ["bank-a", "hospital-a"]
    assert left(renewal) == SITES


def test_when_the_cas_key_was_replaced_each_site_gets_a_certificate_of_the_new_one(
    renewal: Renewal, sites: Sites
) -> None:
    renewal.renew()
    sites.asked.clear()
    sites.connected = {"bank-a", "bank-b"}
    renewal.authority.rotate(HOSTS)
    renewal.renew()
    renewal.renew()
    assert sites.asked == ["bank-a", "bank-b"]
    authorities = renewal.authority.authorities
    assert len(authorities.links) == 1, "hospital-a still holds one of the old key"
    issued = {
        row.name: authorities.issued(x509.load_pem_x509_certificate(row.certificate))
        for row in renewal.registry.sites()
    }
    assert issued == {"bank-a": True, "bank-b": True, "hospital-a": False}
    sites.connected = set(SITES)
    renewal.renew()
    renewal.renew()
    assert sites.asked == ["bank-a", "bank-b", "hospital-a"]
    assert not renewal.authority.authorities.links, "nobody needs the old key any more"
    assert b"older authorities forgotten" in renewal.audit.path.read_bytes()


def test_a_certificate_that_has_run_out_keeps_no_old_key_alive(renewal: Renewal, sites: Sites) -> None:
    sites.connected = set()
    renewal.authority.rotate(HOSTS)
    for row in renewal.registry.sites():
        renewal.registry.renew(replace(row, expires=time.time() - 1))
    renewal.renew()
    assert not renewal.authority.authorities.links


def test_a_key_that_was_replaced_again_meanwhile_is_not_forgotten(
    renewal: Renewal, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewal.authority.rotate(HOSTS)
    renewal.renew()
    forget = renewal.authority.forget_older

    def rotated_first(than: Authorities) -> bool:
        renewal.authority.rotate(HOSTS)
        return forget(than)

    monkeypatch.setattr(renewal.authority, "forget_older", rotated_first)
    renewal.renew()
    assert len(renewal.authority.authorities.links) == 2, "all sites hold certificates of the key before"


@pytest.mark.parametrize("meanwhile", ["replaced", "revoked"])
def test_keys_that_were_replaced_while_a_renewal_was_on_its_way_stay(
    renewal: Renewal, sites: Sites, meanwhile: str
) -> None:
    lost = next(row for row in renewal.registry.sites() if row.name == "hospital-a")
    new = replace(lost, key_hash=b"new key", public_pem=b"new", identity=b"new identity", certificate=b"new")

    def stored_by_a_thief(message: wire.Certify) -> wire.Message:
        if meanwhile == "revoked":
            renewal.registry.revoke("hospital-a")
        else:
            renewal.registry.certify(new, b"", b"")
        return stored(message)

    sites.connected, sites.answer = {"hospital-a"}, stored_by_a_thief
    renewal.renew()
    found = [row for row in renewal.registry.sites() if row.name == "hospital-a"]
    assert found == ([] if meanwhile == "revoked" else [new])
    assert not renewal.audit.path.exists() or b"certificate renewed" not in renewal.audit.path.read_bytes()
