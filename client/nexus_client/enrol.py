"""Joining a consortium: keys made here, one pasted line, a certificate back.

The line pins the hash of the CA's key.  The connection is first made without trust, to learn which certificates the
other end shows; the secret leaves only after both were held against the pin.
"""

from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from nexus_common import certs, rpc
from nexus_common.account import as_owner
from nexus_common.address import split_address
from nexus_common.audit import AuditLog
from nexus_common.cli import moment
from nexus_common.disk import make_above, write_durably
from nexus_common.enrolment import SERVICE, Authority, EnrolAnswer, EnrolRequest, Invite, request_bytes
from nexus_common.errors import REFUSALS, NexusError

from nexus_client.certificate import checked
from nexus_client.policy import write_policy
from nexus_client.site import SiteHome
from nexus_client.tls import CONNECT_SECONDS, shown_certificate

_BUSY: Final = ("resource_exhausted", "deadline_exceeded")


def join(
    home: Path | None, line: str, expected_site: str | None, data: list[Path], proxy: str | None = None
) -> tuple[SiteHome, list[str]]:
    """Enrol this machine; keys that exist already are kept and used again.  Also: what a person should know of it.

    Root works in the state folder as the account that it belongs to, which could lay links in it.
    """
    invite = Invite.parse(line)
    if expected_site not in (None, invite.site):
        raise NexusError(f"the invitation is for {invite.site}, not for {expected_site}")
    for path in data:
        if not path.exists():
            raise NexusError(f"--data {path} does not exist; nothing was sent")
    place = SiteHome.of(home, invite.site)
    for folder in (place.settings_folder, place.state):
        make_above(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
    with as_owner(place.state):
        server, notes = _enrolled(invite, place, proxy)
    write_policy(place.policy_file, place.site)
    if not place.write_settings(server, data, proxy):
        notes.append(_kept(place, server, data))
    elif not data:
        notes.append(f"name your text in {place.settings_file}")
    return place, notes


def _enrolled(invite: Invite, place: SiteHome, proxy: str | None) -> tuple[str, list[str]]:
    """Keys and certificates in the state folder; the server's address, and what a person should know."""
    place.keys.mkdir(mode=0o700, exist_ok=True)
    for name, make in (("transport.key", certs.new_transport_key), ("identity.key", Ed25519PrivateKey.generate)):
        if not (place.keys / name).exists():
            certs.save_key(place.keys / name, make())
    log = AuditLog(place.audit_file)
    log.append("joining", recipient=invite.address, consortium=invite.ca_hash.hex())
    answer, authority = _request(invite, place, proxy)
    if answer.certificate is None or answer.server is None:
        raise NexusError(_refusal_text(invite, answer))
    try:
        split_address(answer.server)
        checked(answer.certificate.encode(), authority, place)
    except ValueError as problem:
        raise NexusError(f"the server's answer cannot be used ({problem}); nothing was changed but the keys") from None
    notes = _repinned(place, authority)
    write_durably(place.keys / "ca.crt", certs.pem(authority))
    write_durably(place.keys / "site.crt", answer.certificate.encode())
    log.append("joined", recipient=invite.address, consortium=invite.ca_hash.hex())
    return answer.server, notes


def _repinned(place: SiteHome, authority: x509.Certificate) -> list[str]:
    """That this site was enrolled under another key of a CA, whose server it will not know any more."""
    try:
        before = certs.key_hash(x509.load_pem_x509_certificate((place.keys / "ca.crt").read_bytes())).hex()
    except (OSError, ValueError):
        return []
    if before == (now := certs.key_hash(authority).hex()):
        return []
    return [
        f"the consortium's key was {before[:16]}… here and is {now[:16]}… now: a server of the one before is refused"
    ]


def _kept(place: SiteHome, server: str, data: list[Path]) -> str:
    """What may have to be changed in a ``site.toml`` that was there."""
    kept = f"{place.settings_file} was there and is kept"
    try:
        there = place.settings().server
    except NexusError as problem:
        return f"{kept}, but cannot be used: {problem}"
    change = [] if there == server else [f'server = "{server}" in place of "{there}"']
    change += [f"a [[data]] table for {path}" for path in data]
    return f"{kept}; put into it: {', '.join(change)}" if change else kept


def _request(invite: Invite, place: SiteHome, proxy: str | None) -> tuple[EnrolAnswer, x509.Certificate]:
    """The server's answer over a connection that was held against the pinned key."""
    leaf = _shown_certificate(invite.address, proxy)
    credentials = grpc.ssl_channel_credentials(root_certificates=certs.pem(leaf))  # trust just what was seen
    with rpc.channel(invite.address, credentials, proxy) as channel:
        try:
            text = rpc.call(channel, SERVICE, "authority", rpc.Nothing(), Authority, CONNECT_SECONDS).certificate
            with certs.foreign():
                authority = x509.load_pem_x509_certificate(text.encode())
            certs.check_issued_by(leaf, authority, invite.ca_hash, ExtendedKeyUsageOID.SERVER_AUTH)
            answer = rpc.call(channel, SERVICE, "enrol", _enrol_request(invite, place), EnrolAnswer, CONNECT_SECONDS)
        except (ConnectionError, ValueError) as problem:
            if str(problem).startswith(_BUSY):
                raise NexusError(
                    f"{invite.address} is too busy to answer ({problem}), perhaps with strangers' connections; try "
                    "again in a minute, the line stays valid"
                ) from None
            issuer = certs.issuer_of(leaf)
            raise NexusError(
                f"{invite.address} answered with a certificate from {issuer!r}, but not as a NEXUS server "
                f"({problem}); is the address right, or does this network inspect TLS?"
            ) from None
    return answer, authority


def _shown_certificate(address: str, proxy: str | None) -> x509.Certificate:
    """The certificate that the enrolment listener shows."""
    try:
        shown = shown_certificate(address, proxy, ("h2",))
    except (OSError, ValueError) as problem:
        way = f" through {proxy}" if proxy else ""
        raise NexusError(
            f"no enrolment listener answers at {address}{way} ({problem}); it is open only while the invitation is: "
            "ask the coordinator whether nexus-server runs and the invitation is open, and check the firewall"
        ) from None
    if shown is None:
        raise NexusError(f"{address} shows no certificate")
    return shown


def _enrol_request(invite: Invite, place: SiteHome) -> EnrolRequest:
    transport = certs.load_transport_key(place.keys / "transport.key")
    identity = certs.load_identity(place.keys / "identity.key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, invite.site)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(transport, hashes.SHA384())
    der = csr.public_bytes(Encoding.DER)
    signature = identity.sign(request_bytes(invite.site, invite.secret, der))
    return EnrolRequest(
        site=invite.site, secret=invite.secret, csr=der, identity=certs.raw_identity(identity), signature=signature
    )


def _refusal_text(invite: Invite, answer: EnrolAnswer) -> str:
    code, contact = answer.refused or "malformed", answer.contact or "the coordinator"
    ask = f"ask {contact} for a new line (`nexus-server invite {invite.site}`); the keys made here are kept"
    if code == "invite-expired" and answer.expired is not None:
        return f"{code}: the invitation for {invite.site} expired on {moment(answer.expired)}; {ask}"
    if code == "invite-used":
        return (
            f"{code}: another key has already joined with this invitation; if that was not you, tell {contact} at once "
            "and ask to be enrolled under another site name"
        )
    return f"{code}: {REFUSALS.get(code, 'refused')}; {ask}"
