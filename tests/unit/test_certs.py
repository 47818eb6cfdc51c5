"""Keys and certificates: what a site's certificate says, who signed it, and that a key is never overwritten."""

import datetime as dt
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, reject
from hypothesis import strategies as st
from nexus_common import certs
from nexus_common.errors import NexusError, Refusal

NOW = dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)
CA_KEY, SITE_KEY, SERVER_KEY = (certs.new_transport_key() for _ in range(3))
IDENTITY = certs.raw_identity(Ed25519PrivateKey.generate())
CA = certs.make_authority(CA_KEY, "demo", NOW)
SITE = certs.issue_site(CA_KEY, CA, SITE_KEY.public_key(), "hospital-a", IDENTITY, NOW)
SERVER = certs.issue_server(CA_KEY, CA, SERVER_KEY.public_key(), ["localhost", "127.0.0.1", "::1"], NOW)
OTHER_CA = certs.make_authority(certs.new_transport_key(), "demo", NOW)


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def changed(certificate: x509.Certificate, at: int, change: int) -> x509.Certificate:
    """The certificate with one byte of its signed part changed."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[der.index(certificate.tbs_certificate_bytes) + at] ^= change
    return x509.load_der_x509_certificate(bytes(der))


def test_a_sites_certificate_says_whose_it_is() -> None:
    assert certs.site_and_identity(SITE) == ("hospital-a", IDENTITY)


@pytest.mark.parametrize("other", [CA, SERVER], ids=["the CA's", "the server's"])
def test_no_other_certificate_is_a_sites(other: x509.Certificate) -> None:
    with pytest.raises(ValueError, match="not a site's certificate"):
        certs.site_and_identity(other)


def test_the_server_is_named_by_hosts_and_addresses() -> None:
    assert names(SERVER).get_values_for_type(x509.DNSName) == ["localhost"]
    found = names(SERVER).get_values_for_type(x509.IPAddress)
    assert found == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]


@pytest.mark.parametrize(
    ("certificate", "usage"),
    [(SITE, ExtendedKeyUsageOID.CLIENT_AUTH), (SERVER, ExtendedKeyUsageOID.SERVER_AUTH)],
    ids=["site", "server"],
)
def test_a_certificate_serves_one_end_of_a_connection_only(
    certificate: x509.Certificate, usage: x509.ObjectIdentifier
) -> None:
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def usage_of(certificate: x509.Certificate) -> x509.ObjectIdentifier:
    return ExtendedKeyUsageOID.SERVER_AUTH if certificate is SERVER else ExtendedKeyUsageOID.CLIENT_AUTH


def test_a_sites_certificate_cannot_stand_for_the_server() -> None:
    with pytest.raises(Refusal, match="wrong-authority"):
        certs.check_issued_by(SITE, CA, certs.key_hash(CA), ExtendedKeyUsageOID.SERVER_AUTH)


def test_the_authority_signs_certificates_and_no_further_authorities() -> None:
    limits = CA.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)


def test_certificates_begin_a_day_early_for_clocks_that_are_behind() -> None:
    assert SITE.not_valid_before_utc == NOW - dt.timedelta(days=1)
    assert SITE.not_valid_after_utc == NOW + dt.timedelta(days=365)
    assert CA.not_valid_after_utc == NOW + dt.timedelta(days=3650)


@pytest.mark.parametrize("certificate", [SITE, SERVER], ids=["site", "server"])
def test_what_the_pinned_authority_signed_is_accepted(certificate: x509.Certificate) -> None:
    certs.check_issued_by(certificate, CA, certs.key_hash(CA), usage_of(certificate))


@pytest.mark.parametrize(
    ("certificate", "authority", "pinned"),
    [(SITE, CA, OTHER_CA), (SITE, OTHER_CA, OTHER_CA), (SITE, OTHER_CA, CA), (OTHER_CA, CA, CA), (CA, SITE, SITE)],
    ids=["another pin", "same name, another key", "unpinned", "signed by itself", "upside down"],
)
def test_what_another_key_signed_is_refused(
    certificate: x509.Certificate, authority: x509.Certificate, pinned: x509.Certificate
) -> None:
    with pytest.raises(Refusal, match="wrong-authority"):
        certs.check_issued_by(certificate, authority, certs.key_hash(pinned), usage_of(certificate))


@given(st.integers(0, len(SITE.tbs_certificate_bytes) - 1), st.integers(1, 255))
def test_a_change_of_what_was_signed_is_refused(at: int, change: int) -> None:
    try:
        forged = changed(SITE, at, change)
        forged.issuer.rfc4514_string()
    except (ValueError, x509.InvalidVersion):
        reject()
    with pytest.raises(Refusal, match="wrong-authority"):
        certs.check_issued_by(forged, CA, certs.key_hash(CA), usage_of(forged))


def test_a_certificate_whose_issuer_cannot_be_read_is_refused() -> None:
    issuer = SITE.tbs_certificate_bytes.index(b"NEXUS demo CA")
    forged = changed(SITE, issuer - 2, 1)  # the type of the string
    with pytest.raises(Refusal, match="wrong-authority"):
        certs.check_issued_by(forged, CA, certs.key_hash(CA), usage_of(forged))


def test_an_authority_on_an_unknown_curve_is_refused() -> None:
    p384, unknown = b"\x06\x05\x2b\x81\x04\x00\x22", b"\x06\x05\x2b\x81\x04\x00\x7f"
    forged = x509.load_der_x509_certificate(CA.public_bytes(Encoding.DER).replace(p384, unknown))
    with pytest.raises(Refusal, match="wrong-authority"):
        certs.check_issued_by(SERVER, forged, certs.key_hash(CA), usage_of(SERVER))


def test_the_pin_is_of_the_key_and_outlives_the_certificate() -> None:
    again = certs.make_authority(CA_KEY, "renamed", NOW + dt.timedelta(days=3000))
    assert certs.key_hash(again) == certs.key_hash(CA) == certs.key_hash(CA_KEY.public_key())


def test_public_keys_are_written_as_flower_reads_them() -> None:
    key = load_pem_public_key(certs.public_pem(SITE_KEY.public_key()))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert certs.spki(key) == certs.spki(SITE)


def test_keys_are_saved_for_their_owner_alone_and_come_back(tmp_path: Path) -> None:
    identity = Ed25519PrivateKey.generate()
    certs.save_key(tmp_path / "transport.key", SITE_KEY)
    certs.save_key(tmp_path / "identity.key", identity)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]
    assert certs.key_hash(certs.load_transport_key(tmp_path / "transport.key").public_key()) == certs.key_hash(SITE)
    assert certs.raw_identity(certs.load_identity(tmp_path / "identity.key")) == certs.raw_identity(identity)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    certs.save_key(tmp_path / "ca.key", CA_KEY)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(FileExistsError):
        certs.save_key(tmp_path / "ca.key", SITE_KEY)
    assert (tmp_path / "ca.key").read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_cannot_be_read_is_told_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.key").write_bytes(content)
    with pytest.raises(NexusError, match=r"x\.key cannot be read: .*; restore it from the backup"):
        certs.load_identity(tmp_path / "x.key")


def test_a_key_of_another_kind_is_told(tmp_path: Path) -> None:
    certs.save_key(tmp_path / "transport.key", SITE_KEY)
    with pytest.raises(NexusError, match="holds no Ed25519 key"):
        certs.load_identity(tmp_path / "transport.key")
    certs.save_key(tmp_path / "rsa.key", rsa.generate_private_key(65537, 2048))  # type: ignore[arg-type]
    with pytest.raises(NexusError, match="holds no elliptic-curve key"):
        certs.load_transport_key(tmp_path / "rsa.key")
