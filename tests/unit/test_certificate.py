"""A running site takes a newer certificate of its own, and no other."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.certificate import renew
from nexus_client.site import SiteHome
from nexus_common import certs
from nexus_common.authorities import Authorities
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
    assert certs.pem(renew(new, certs.pem(CA), place)) == new == (place.keys / "site.crt").read_bytes()


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
        (issued(days_ago=-9), "bad-certificate"),
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
        "not yet valid",
        "text",
        "empty",
    ],
)
def test_any_other_is_refused_and_changes_nothing(place: SiteHome, pem: bytes, code: str) -> None:
    before = (place.keys / "site.crt").read_bytes()
    with pytest.raises(Refusal) as refused:
        renew(pem, certs.pem(CA), place)
    assert refused.value.code == code
    assert (place.keys / "site.crt").read_bytes() == before


# A consortium whose CA got a new key, and then another: what the site that pinned the first one takes, and what not.
FIRST, MALLORY = Authorities((CA,)), certs.new_transport_key()
SECOND_KEY, THIRD_KEY = certs.new_transport_key(), certs.new_transport_key()
SECOND = FIRST.rotated(CA_KEY, SECOND_KEY, NOW)
THIRD = SECOND.rotated(SECOND_KEY, THIRD_KEY, NOW)
FOREIGN = FIRST.rotated(MALLORY, OTHER_CA_KEY, NOW)  # linked by a key that is not the pinned one


def of(chain: Authorities, key: certs.TransportKey) -> bytes:
    return issued(key, chain.newest)


@pytest.mark.parametrize(("chain", "key"), [(SECOND, SECOND_KEY), (THIRD, THIRD_KEY)], ids=["one on", "two on"])
def test_a_key_for_which_the_pinned_one_vouches_is_pinned_in_its_place(
    place: SiteHome, chain: Authorities, key: certs.TransportKey
) -> None:
    renew(of(chain, key), chain.pem, place)
    assert (place.keys / "ca.crt").read_bytes() == certs.pem(chain.newest)
    with pytest.raises(Refusal) as refused:  # and there is no way back
        renew(issued(), certs.pem(CA), place)
    assert refused.value.code == "wrong-authority"


def leaf_as_link() -> Authorities:
    """The CA certified the new key, but as a site's: a site that is a liar would be a CA."""
    leaf = certs.issue_site(CA_KEY, CA, OTHER_CA_KEY.public_key(), "mallory", bytes(32), NOW)
    return Authorities((certs.make_authority(OTHER_CA_KEY, "demo", NOW), CA), (leaf,))


@pytest.mark.parametrize(
    ("chain", "key"),
    [
        (Authorities((OTHER_CA,)), OTHER_CA_KEY),
        (FOREIGN, OTHER_CA_KEY),
        (leaf_as_link(), OTHER_CA_KEY),
        (Authorities((OTHER_CA, CA), SECOND.links), OTHER_CA_KEY),
        (Authorities((THIRD.newest, CA), SECOND.links), THIRD_KEY),
        (Authorities((THIRD.newest, CA), THIRD.links[:1]), THIRD_KEY),
        (Authorities((OTHER_CA, CA), (OTHER_CA,)), OTHER_CA_KEY),
    ],
    ids=[
        "stranger",
        "forged link",
        "a site's as link",
        "borrowed link",
        "a step left out",
        "wrong step",
        "self-signed",
    ],
)
def test_any_other_key_is_refused_and_changes_nothing(
    place: SiteHome, chain: Authorities, key: certs.TransportKey
) -> None:
    before = [(place.keys / name).read_bytes() for name in ("ca.crt", "site.crt")]
    with pytest.raises(Refusal) as refused:
        renew(of(chain, key), chain.pem, place)
    assert refused.value.code == "wrong-authority"
    assert [(place.keys / name).read_bytes() for name in ("ca.crt", "site.crt")] == before


def test_a_vouched_chain_with_a_certificate_of_another_key_changes_nothing(place: SiteHome) -> None:
    with pytest.raises(Refusal) as refused:
        renew(of(SECOND, OTHER_CA_KEY), SECOND.pem, place)
    assert refused.value.code == "wrong-authority"
    assert (place.keys / "ca.crt").read_bytes() == certs.pem(CA)


@pytest.mark.parametrize("pem", [b"", b"no certificate", SECOND.pem[:-40], certs.pem(CA) * 2, certs.pem(CA) * 17])
def test_what_is_no_chain_is_refused(place: SiteHome, pem: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        renew(issued(), pem, place)
    assert refused.value.code == "bad-certificate"


def test_a_rotation_that_a_kill_cut_short_at_the_site_is_taken_up_again(place: SiteHome) -> None:
    (place.keys / "ca.crt").write_bytes(certs.pem(SECOND.newest))  # stored, and site.crt not yet
    renew(of(SECOND, SECOND_KEY), SECOND.pem, place)
    used = x509.load_pem_x509_certificate((place.keys / "site.crt").read_bytes())
    used.verify_directly_issued_by(SECOND.newest)
