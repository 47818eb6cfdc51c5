"""Keys and certificates: one transport CA per consortium, one P-384 and one Ed25519 key per site.

P-384 serves TLS and Flower's signed timestamps, Ed25519 is the long-term identity that signs payloads.  A site's
certificate carries both its name and its identity (as URI names), so the server can hold certificate, Flower node,
identity and sender to one site.  Sites pin the CA's *key*, by the hash of its SubjectPublicKeyInfo.
"""

import datetime as dt
import hashlib
import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nexus_common.disk import give_away, sync_folder
from nexus_common.errors import NexusError, Refusal

TransportKey = ec.EllipticCurvePrivateKey
CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365
BACKDATED: Final = dt.timedelta(days=1)  # a client clock that is behind must not refuse a new certificate
_IDENTITY: Final = "nexus:identity:"
_SITE: Final = "nexus:site:"


@contextmanager
def foreign() -> Iterator[None]:
    """What cryptography raises over a certificate that others made, all as ValueError."""
    try:
        yield
    except (
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.UnsupportedGeneralNameType,
        InvalidSignature,
        UnsupportedAlgorithm,
        TypeError,
    ) as problem:
        raise ValueError(f"{type(problem).__name__}: {problem}") from problem


def new_transport_key() -> TransportKey:
    """P-384, the curve that Flower itself uses for its nodes."""
    return ec.generate_private_key(ec.SECP384R1())


def save_key(path: Path, key: TransportKey | Ed25519PrivateKey) -> None:
    """Write a private key, mode 0600, whole or not at all, and never over an existing one (FileExistsError).

    Where root writes it, it is the folder's account's: that of the service.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            give_away(file.fileno(), path.parent)
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_transport_key(path: Path) -> TransportKey:
    """Read a P-384 key; NexusError where the file is missing or holds something else."""
    key = _load(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NexusError(f"{path} holds no elliptic-curve key")
    return key


def load_identity(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key; NexusError where the file is missing or holds something else."""
    key = _load(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise NexusError(f"{path} holds no Ed25519 key")
    return key


def _load(path: Path) -> object:
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as problem:
        raise NexusError(f"the key {path} cannot be read: {problem}; restore it from the backup") from None


def spki(key: ec.EllipticCurvePublicKey | x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    public = key.public_key() if isinstance(key, x509.Certificate) else key
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_hash(key: ec.EllipticCurvePublicKey | x509.Certificate) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo: what is pinned and what the registry looks up."""
    return hashlib.sha256(spki(key)).digest()


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The form in which Flower knows a node's key."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def raw_identity(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """The 32 bytes of an Ed25519 public key."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def pem(certificate: x509.Certificate) -> bytes:
    """PEM text of a certificate."""
    return certificate.public_bytes(Encoding.PEM)


def make_authority(key: TransportKey, name: str, now: dt.datetime) -> x509.Certificate:
    """The consortium's transport CA, self-signed."""
    short = name.encode()[:50].decode(errors="ignore")  # X.509 allows 64 bytes
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"NEXUS {short} CA")])
    return _authority(subject, key.public_key(), key, now - BACKDATED, now)


def authority_like(
    before: x509.Certificate, key: ec.EllipticCurvePublicKey, signer: TransportKey, now: dt.datetime
) -> x509.Certificate:
    """A CA certificate for ``key`` under the name of the one before it.

    RFC 5280, section 6.1: certificates between keys of one name do not count against the path length, which is 0.
    It begins when the one before began: a rotation under a clock that was ahead must not shut everybody out afterwards.
    """
    return _authority(before.subject, key, signer, before.not_valid_before_utc, now)


def _authority(
    name: x509.Name, key: ec.EllipticCurvePublicKey, signer: TransportKey, begins: dt.datetime, now: dt.datetime
) -> x509.Certificate:
    return (
        _builder(name, name, key, begins, now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate may issue others; ValueError where its extensions cannot be read."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def issuer_key(certificate: x509.Certificate) -> bytes | None:
    """The identifier of the key that signed a certificate; its own where it signed itself and does not say so."""
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest


def issue_server(
    ca_key: TransportKey, ca: x509.Certificate, key: ec.EllipticCurvePublicKey, hosts: list[str], now: dt.datetime
) -> x509.Certificate:
    """A certificate for the server under every host name and address by which sites may dial it."""
    return _issue(ca_key, ca, key, hosts[0], host_names(hosts), ExtendedKeyUsageOID.SERVER_AUTH, now)


def host_names(hosts: list[str]) -> list[x509.GeneralName]:
    """Host names and addresses as a certificate names them; an address has one form there, however it was written."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def issue_site(
    ca_key: TransportKey,
    ca: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    site: str,
    identity: bytes,
    now: dt.datetime,
) -> x509.Certificate:
    """A client certificate that names the site and its identity key."""
    names = [x509.UniformResourceIdentifier(_SITE + site), x509.UniformResourceIdentifier(_IDENTITY + identity.hex())]
    return _issue(ca_key, ca, key, site, names, ExtendedKeyUsageOID.CLIENT_AUTH, now)


def site_and_identity(certificate: x509.Certificate) -> tuple[str, bytes]:
    """What a site's certificate says about whose it is; ValueError where it is no site's certificate."""
    try:
        with foreign():
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        (site,), (identity,) = ([u.removeprefix(p) for u in uris if u.startswith(p)] for p in (_SITE, _IDENTITY))
        return site, bytes.fromhex(identity)
    except ValueError as problem:
        raise ValueError("not a site's certificate") from problem


def issuer_of(certificate: x509.Certificate) -> str:
    """The issuer's name for an error message, also where it cannot be read."""
    try:
        return certificate.issuer.rfc4514_string()
    except ValueError:
        return "an issuer whose name cannot be read"


def check_issued_by(
    certificate: x509.Certificate, ca: x509.Certificate, pinned: bytes, usage: x509.ObjectIdentifier
) -> None:
    """Raise Refusal ``wrong-authority`` unless ``ca`` has the pinned key and signed ``certificate`` for this usage."""
    try:
        with foreign():
            if key_hash(ca) != pinned:
                raise ValueError("another CA key than the one in the invitation")
            certificate.verify_directly_issued_by(ca)
            if usage not in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
                raise ValueError("a certificate for another purpose")
    except ValueError:
        issuer = issuer_of(certificate)
        raise Refusal(
            "wrong-authority",
            f"the certificate came from {issuer!r}, not from the consortium's key: this network inspects TLS (have the "
            "address exempted), another server answers there, or that key was replaced after the invitation",
        ) from None


def _issue(
    ca_key: TransportKey,
    ca: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    common_name: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: dt.datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(subject, ca.subject, key, now - BACKDATED, now + dt.timedelta(days=LEAF_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: dt.datetime, ends: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
