"""A running site takes a newer certificate of its own, and no other."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.certificate import renew
from nexus_client.site import SiteHome
from nexus_common import certs
from nexus_common.errors import Refusal

NOW = dt.datetime.now(dt.UTC)
CA_KEY, OTHER_CA_KEY = certs.new_transport_key(), certs.new_transport_key()
CA, OTHER_CA = (certs.make_authority(key, "demo", NOW) for key in (CA_KEY, OTHER_CA_KEY))
KEY, OTHER_KEY = certs.new_transport_key(), certs.new_transport_key()
IDENTITY, OTHER_IDENTITY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@pytest.fixture
def place(tmp_path: Path) -> SiteHome:
    made = SiteHome.of(tmp_path, "hospital-a")
    made.keys.mkdir(parents=True)
    certs.save_key(made.keys / "transport.key", KEY)
    certs.save_key(made.keys / "identity.key", IDENTITY)
    (made.keys / "ca.crt").write_bytes(certs.pem(CA))
    (made.keys / "site.crt").write_bytes(issued(days_ago=300))
    return made


def issued(
    ca_key: certs.TransportKey = CA_KEY,
    ca: x509.Certificate = CA,
    key: certs.TransportKey = KEY,
    site: str = "hospital-a",
    identity: Ed25519PrivateKey = IDENTITY,
    days_ago: int = 0,
) -> bytes:
    now = NOW - dt.timedelta(days=days_ago)
    return certs.pem(certs.issue_site(ca_key, ca, key.public_key(), site, certs.raw_identity(identity), now))


def test_a_newer_certificate_takes_the_place_of_the_one_in_use(place: SiteHome) -> None:
    new = issued()
    assert certs.pem(renew(new, place)) == new == (place.keys / "site.crt").read_bytes()


@pytest.mark.parametrize(
    ("pem", "code"),
    [
        (issued(OTHER_CA_KEY, OTHER_CA), "wrong-authority"),
        (issued(OTHER_CA_KEY, CA), "wrong-authority"),
        (certs.pem(certs.issue_server(CA_KEY, CA, KEY.public_key(), ["127.0.0.1"], NOW)), "wrong-authority"),
        (issued(key=OTHER_KEY), "bad-certificate"),
        (issued(site="hospital-b"), "bad-certificate"),
        (issued(identity=OTHER_IDENTITY), "bad-certificate"),
        (issued(days_ago=300), "bad-certificate"),
        (issued(days_ago=301), "bad-certificate"),
        (b"no certificate", "bad-certificate"),
        (b"", "bad-certificate"),
    ],
    ids=[
        "other CA",
        "forged",
        "server's",
        "other key",
        "other site",
        "other identity",
        "same",
        "older",
        "text",
        "empty",
    ],
)
def test_any_other_is_refused_and_changes_nothing(place: SiteHome, pem: bytes, code: str) -> None:
    before = (place.keys / "site.crt").read_bytes()
    with pytest.raises(Refusal) as refused:
        renew(pem, place)
    assert refused.value.code == code
    assert (place.keys / "site.crt").read_bytes() == before
