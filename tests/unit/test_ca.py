"""The authority and enrolment: one-time means one key, and a request that is wrong is refused with its code."""

import datetime as dt
import hashlib
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.enrol import join
from nexus_common import certs
from nexus_common.audit import AuditLog
from nexus_common.enrolment import EnrolAnswer, EnrolRequest, Invite, request_bytes
from nexus_common.errors import NexusError, Refusal
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.enrolment import Enrolment, _checked_key
from nexus_server.records import Invitation
from nexus_server.registry import Registry
from nexus_server.settings import ServerSettingsFile

from tests.processes.harness import free_ports

SECRET, SITE = bytes(range(16)), "hospital-a"
KEY, OTHER_KEY = certs.new_transport_key(), certs.new_transport_key()
IDENTITY, OTHER_IDENTITY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
P384, UNKNOWN_CURVE = b"\x06\x05\x2b\x81\x04\x00\x22", b"\x06\x05\x2b\x81\x04\x00\x7f"


def csr_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, SITE)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    return made.public_bytes(Encoding.DER)


CSR = csr_of(KEY)


def request(csr: bytes = CSR, identity: Ed25519PrivateKey = IDENTITY, **changed: object) -> EnrolRequest:
    """A good request, but for what is changed after it was signed."""
    fields = {"site": SITE, "secret": SECRET, "csr": csr, "identity": certs.raw_identity(identity)}
    fields["signature"] = identity.sign(request_bytes(SITE, SECRET, csr))
    return EnrolRequest.model_validate(fields | changed)


@pytest.fixture
def enrolment(tmp_path: Path) -> Enrolment:
    authority = CertificateAuthority.create(CertificateFiles(tmp_path / "keys"), "demo")
    authority.ensure_server_certificate(["127.0.0.1"])
    main, enrol = (f"127.0.0.1:{port}" for port in free_ports(2))
    settings = ServerSettingsFile(
        name="demo", contact="Kim", address=main, listen=main, enrol_address=enrol, enrol_listen=enrol
    )
    made = Enrolment(authority, Registry(tmp_path), settings, AuditLog(tmp_path / "audit.jsonl"))
    now = time.time()
    made.registry.invite(Invitation(hashlib.sha256(SECRET).digest(), SITE, now, now + 60, None, "St Anna", "Dr X"))
    return made


def certificate_of(answer: EnrolAnswer) -> x509.Certificate:
    assert answer.refused is None
    assert answer.certificate is not None
    return x509.load_pem_x509_certificate(answer.certificate.encode())


def sites(enrolment: Enrolment) -> list[str]:
    return [row.name for row in enrolment.registry.sites()]


def test_a_good_request_gets_a_certificate_of_site_and_identity(enrolment: Enrolment) -> None:
    answer = enrolment.enrol(request())
    certificate, authority = certificate_of(answer), enrolment.authority.certificate
    certs.check_issued_by(certificate, authority, certs.key_hash(authority), ExtendedKeyUsageOID.CLIENT_AUTH)
    assert certs.site_and_identity(certificate) == (SITE, certs.raw_identity(IDENTITY))
    assert certs.key_hash(certificate) == certs.key_hash(KEY.public_key())
    assert answer.server == enrolment.settings.address


def test_what_was_issued_is_remembered(enrolment: Enrolment) -> None:
    certificate = certificate_of(enrolment.enrol(request()))
    (row,) = enrolment.registry.sites()
    assert (row.name, row.identity) == (SITE, certs.raw_identity(IDENTITY))
    assert (row.key_hash, row.public_pem) == (certs.key_hash(certificate), certs.public_pem(KEY.public_key()))
    assert row.expires == certificate.not_valid_after_utc.timestamp()


def test_the_same_keys_get_the_same_certificate_again(enrolment: Enrolment) -> None:
    first = enrolment.enrol(request())
    assert enrolment.enrol(request(csr_of(KEY))) == first


def test_the_same_keys_get_their_certificate_even_after_the_invitation_expired(enrolment: Enrolment) -> None:
    first = enrolment.enrol(request())
    enrolment.registry._db.execute("UPDATE invitations SET expires = 1")
    assert enrolment.enrol(request()) == first


@pytest.mark.parametrize("changed", [{"csr": csr_of(OTHER_KEY)}, {"identity": OTHER_IDENTITY}], ids=["key", "identity"])
def test_another_key_is_refused_and_nothing_changes(enrolment: Enrolment, changed: dict) -> None:
    enrolment.enrol(request())
    before = enrolment.registry.sites()
    assert enrolment.enrol(request(**changed)) == EnrolAnswer(refused="invite-used", contact="Kim")
    assert enrolment.registry.sites() == before


def test_an_expired_invitation_is_refused_with_its_time(enrolment: Enrolment) -> None:
    enrolment.registry._db.execute("UPDATE invitations SET expires = 99")
    assert enrolment.enrol(request()) == EnrolAnswer(refused="invite-expired", expired=99, contact="Kim")
    assert sites(enrolment) == []


@pytest.mark.parametrize("changed", [{"secret": bytes(16)}, {"secret": b""}, {"site": "hospital-b"}], ids=str)
def test_a_secret_that_is_not_this_sites_is_unknown(enrolment: Enrolment, changed: dict) -> None:
    assert enrolment.enrol(request(**changed)) == EnrolAnswer(refused="invite-unknown", contact="Kim")


@pytest.mark.parametrize(
    "wrong",
    [
        request(signature=bytes(64)),
        request(signature=b""),
        request(identity=OTHER_IDENTITY, signature=request().signature),
        EnrolRequest.model_validate(request().model_dump() | {"identity": bytes(31)}),
        EnrolRequest.model_validate(request().model_dump() | {"csr": csr_of(OTHER_KEY)}),
        request(csr_of(ec.generate_private_key(ec.SECP256R1()))),
        request(csr_of(ec.generate_private_key(ec.SECP521R1()))),
        request(csr_of(rsa.generate_private_key(65537, 2048))),
        request(b""),
        request(CSR + b"\0"),
        request(CSR.replace(SITE.encode(), SITE.encode()[::-1])),
    ],
    ids=["zeros", "short", "identity", "length", "csr", "P-256", "P-521", "RSA", "empty", "longer", "unsigned"],
)
def test_a_request_not_signed_by_both_its_keys_is_refused(enrolment: Enrolment, wrong: EnrolRequest) -> None:
    assert enrolment.enrol(wrong) == EnrolAnswer(refused="request-signature", contact="Kim")
    assert sites(enrolment) == []


def test_a_refused_request_leaves_the_invitation_open(enrolment: Enrolment) -> None:
    enrolment.enrol(request(signature=bytes(64)))
    certificate_of(enrolment.enrol(request()))


@given(st.binary(max_size=200))
def test_a_request_of_random_bytes_is_refused(csr: bytes) -> None:
    with pytest.raises(Refusal, match="request-signature"):
        _checked_key(request(csr))


@pytest.mark.parametrize("csr", [CSR.replace(P384, UNKNOWN_CURVE), CSR.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)])
def test_a_request_on_an_unknown_curve_or_of_an_unknown_version_is_refused(csr: bytes) -> None:
    with pytest.raises(Refusal, match="request-signature"):
        _checked_key(request(csr))


def test_an_invitation_pins_the_authority_and_opens_the_listener(enrolment: Enrolment) -> None:
    enrolment.registry._db.execute("UPDATE invitations SET expires = 1")
    enrolment.watch()
    assert enrolment._listener is None
    invite = enrolment.invite("hospital-b")
    assert enrolment._listener is not None
    pin = certs.key_hash(enrolment.authority.certificate)
    assert Invite.parse(invite.line) == Invite(enrolment.settings.enrol_address, "hospital-b", pin, invite.secret)
    enrolment.registry._db.execute("UPDATE invitations SET expires = 1")
    enrolment.watch()
    assert enrolment._listener is None


def test_an_enrolled_site_is_not_invited_again(enrolment: Enrolment) -> None:
    enrolment.enrol(request())
    with pytest.raises(NexusError, match="hospital-a is already enrolled"):
        enrolment.invite(SITE)


def test_the_servers_certificate_is_kept_while_it_fits(enrolment: Enrolment) -> None:
    before = enrolment.authority.files.server.read_bytes()
    enrolment.authority.ensure_server_certificate(["127.0.0.1"])
    assert enrolment.authority.files.server.read_bytes() == before


@pytest.mark.parametrize("hosts", [["localhost"], ["127.0.0.1", "::1"], ["127.0.0.1", "server.example"]], ids=str)
def test_the_servers_certificate_is_renewed_when_hosts_change(enrolment: Enrolment, hosts: list[str]) -> None:
    files = enrolment.authority.files
    enrolment.authority.ensure_server_certificate(hosts)
    certificate = x509.load_pem_x509_certificate(files.server.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == set(hosts)
    assert certs.key_hash(certificate) == certs.key_hash(certs.load_transport_key(files.server_key).public_key())


@pytest.mark.parametrize(("days_old", "renewed"), [(240, False), (250, True)])
def test_the_servers_certificate_is_renewed_120_days_before_its_end(
    enrolment: Enrolment, days_old: int, renewed: bool
) -> None:
    authority, files = enrolment.authority, enrolment.authority.files
    key = certs.load_transport_key(files.server_key).public_key()
    made = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_old)
    ca_key = certs.load_transport_key(files.ca_key)
    old = certs.pem(certs.issue_server(ca_key, authority.certificate, key, ["127.0.0.1"], made))
    files.server.write_bytes(old)
    authority.ensure_server_certificate(["127.0.0.1"])
    assert (files.server.read_bytes() != old) == renewed


def test_an_authority_is_never_made_over_another_and_an_interrupted_one_is_completed(enrolment: Enrolment) -> None:
    files = enrolment.authority.files
    before = files.ca_key.read_bytes()
    files.server_key.unlink()
    CertificateAuthority.create(files, "demo")
    assert files.ca_key.read_bytes() == before
    assert files.server_key.exists()


def test_keys_of_another_site_are_refused(enrolment: Enrolment) -> None:
    enrolment.enrol(request())
    invite = enrolment.invite("hospital-z")
    csr_signed = certs.raw_identity(IDENTITY)
    signature = IDENTITY.sign(request_bytes("hospital-z", invite.secret, CSR))
    again = EnrolRequest(site="hospital-z", secret=invite.secret, csr=CSR, identity=csr_signed, signature=signature)
    assert enrolment.enrol(again).refused == "key-in-use"


@pytest.mark.parametrize("site", ["", "Hospital", "../x", "a b", "-a", "a" * 64, "a\n", "server"])
def test_a_name_that_is_none_gets_no_invitation(enrolment: Enrolment, site: str) -> None:
    with pytest.raises(NexusError, match="cannot be a site's name"):
        enrolment.invite(site)


def test_a_renewal_is_for_the_enrolled_keys_alone(enrolment: Enrolment) -> None:
    assert enrolment.enrol(request()).certificate
    (before,) = enrolment.registry.sites()
    invited = enrolment.invite(SITE, kind="renew")
    for csr, identity in ((csr_of(OTHER_KEY), IDENTITY), (CSR, OTHER_IDENTITY)):
        assert enrolment.enrol(asked(invited, csr, identity)).refused == "other-key"
    assert enrolment.registry.sites() == [before]
    first = enrolment.enrol(asked(invited, CSR, IDENTITY))
    assert first.certificate
    assert enrolment.enrol(asked(invited, CSR, IDENTITY)) == first, "the answer may have been lost"
    (after,) = enrolment.registry.sites()
    assert (after.key_hash, after.identity, after.enrolled) == (before.key_hash, before.identity, before.enrolled)
    assert after.certificate == first.certificate.encode() != before.certificate


def test_lost_keys_are_replaced_by_new_ones_alone(enrolment: Enrolment) -> None:
    assert enrolment.enrol(request()).certificate
    invited = enrolment.invite(SITE, kind="replace")
    for csr, identity in ((CSR, OTHER_IDENTITY), (csr_of(OTHER_KEY), IDENTITY)):
        assert enrolment.enrol(asked(invited, csr, identity)).refused == "key-in-use"
    assert enrolment.enrol(asked(invited, csr_of(OTHER_KEY), OTHER_IDENTITY)).certificate
    (row,) = enrolment.registry.sites()
    assert (row.key_hash, row.identity) == (certs.key_hash(OTHER_KEY.public_key()), certs.raw_identity(OTHER_IDENTITY))


@pytest.mark.parametrize(("kind", "said"), [("renew", "is not enrolled"), ("replace", "is not enrolled")])
def test_only_an_enrolled_site_can_be_renewed_or_replaced(enrolment: Enrolment, kind: str, said: str) -> None:
    with pytest.raises(NexusError, match=said):
        enrolment.invite("hospital-b", kind=kind)


def test_the_listener_stays_open_until_the_site_has_come_with_its_new_certificate(enrolment: Enrolment) -> None:
    enrolment.enrol(request())
    enrolment.registry.note_seen({SITE: time.time()})
    assert enrolment.registry.open_invitations() == []
    invited = enrolment.invite(SITE, kind="renew")
    try:
        assert enrolment.registry.open_invitations() == [SITE]
        enrolment.enrol(asked(invited, CSR, IDENTITY))
        assert enrolment.registry.open_invitations() == [SITE], "its answer may have been lost"
        enrolment.registry.note_seen({SITE: time.time()})
        assert enrolment.registry.open_invitations() == []
    finally:
        enrolment.close()


def asked(invited: Invite, csr: bytes, identity: Ed25519PrivateKey) -> EnrolRequest:
    """A request with the secret of an invitation."""
    signature = identity.sign(request_bytes(SITE, invited.secret, csr))
    return EnrolRequest(
        site=SITE, secret=invited.secret, csr=csr, identity=certs.raw_identity(identity), signature=signature
    )


def test_an_invitation_right_after_a_rotation_is_for_the_new_key_from_its_first_second_on(
    enrolment: Enrolment, tmp_path: Path
) -> None:
    enrolment.watch()  # the listener is open for the fixture's invitation
    assert enrolment.rotate() == [SITE]
    line = enrolment.invite(SITE).line
    try:
        join(tmp_path / "sites", line, None, [])
    finally:
        enrolment.close()
    pinned = tmp_path / "sites" / SITE / "state" / "keys" / "ca.crt"
    assert pinned.read_bytes() == certs.pem(enrolment.authority.certificate)
