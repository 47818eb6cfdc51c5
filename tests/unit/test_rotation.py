"""The CA's key is replaced: who still pins an older one gets in over the links, and a kill leaves one key in force."""

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.tls import tls_context
from nexus_common import certs
from nexus_common.authorities import MOST
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_server import ca
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.tls import DoorTls

HOSTS = ["127.0.0.1"]


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    made = CertificateAuthority.create(CertificateFiles(tmp_path / "server"), "demo")
    assert made.ensure_server_certificate(HOSTS)
    return made


def site(authority: CertificateAuthority, folder: Path) -> Path:
    """A site's keys and certificates, as joining now leaves them."""
    folder.mkdir()
    certs.save_key(folder / "transport.key", key := certs.new_transport_key())
    identity = certs.raw_identity(Ed25519PrivateKey.generate())
    (folder / "site.crt").write_bytes(certs.pem(authority.issue("hospital-a", key.public_key(), identity)))
    (folder / "ca.crt").write_bytes(certs.pem(authority.certificate))
    return folder


def meets(door: DoorTls, keys: Path) -> bool:
    """Whether a site with these keys and the door accept each other, over a real connection."""
    near, far = socket.socketpair()
    answers: list[bool] = []

    def serve() -> None:
        try:
            with door.context.wrap_socket(far, server_side=True) as tls:
                tls.sendall(b"in")
                answers.append(tls.recv(2) == b"in")
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with tls_context(keys).wrap_socket(near, server_hostname="127.0.0.1") as tls:
            good = tls.recv(2) == b"in"  # TLS 1.3 tells a refused client only now
            tls.sendall(b"in")
    except (ssl.SSLError, ConnectionError):
        good = False
    near.close()
    thread.join(10)
    return good and answers == [True]


def rotated(authority: CertificateAuthority, door: DoorTls, *, distrust: bool = False) -> None:
    authority.rotate(distrust=distrust)
    assert authority.ensure_server_certificate(HOSTS)
    assert not authority.ensure_server_certificate(HOSTS)
    door.reload()


def test_sites_of_every_generation_are_let_in_until_the_old_keys_are_forgotten(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    door, sites = DoorTls(authority.files), [site(authority, tmp_path / "0")]
    assert meets(door, sites[0])
    for generation in (1, 2):
        rotated(authority, door)
        sites.append(site(authority, tmp_path / str(generation)))
        assert [meets(door, keys) for keys in sites] == [True] * (generation + 1)
    restarted = CertificateAuthority(authority.files)
    assert not restarted.ensure_server_certificate(HOSTS)
    assert [meets(DoorTls(authority.files), keys) for keys in sites] == [True] * 3
    authority.forget_older()
    assert authority.ensure_server_certificate(HOSTS)
    door.reload()
    assert [meets(door, keys) for keys in sites] == [False, False, True]


def test_each_side_is_refused_without_the_links_and_without_the_older_keys(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    old = site(authority, tmp_path / "old")
    door = DoorTls(authority.files)
    rotated(authority, door)
    assert meets(door, old)
    leaf = x509.load_pem_x509_certificate(authority.files.server.read_bytes())
    authority.files.server.write_bytes(certs.pem(leaf))
    assert not meets(DoorTls(authority.files), old)  # the site knows nobody who issued this
    assert authority.ensure_server_certificate(HOSTS)
    (old / "ca.crt").write_bytes(certs.pem(authority.certificate))
    assert meets(DoorTls(authority.files), old)  # half-way: the new key pinned, the old certificate shown
    authority.files.ca.write_bytes(certs.pem(authority.certificate))
    assert not meets(DoorTls(authority.files), old)  # the server no longer trusts who issued that


def test_a_distrusted_key_vouches_for_nobody(authority: CertificateAuthority, tmp_path: Path) -> None:
    old, door = site(authority, tmp_path / "old"), DoorTls(authority.files)
    rotated(authority, door, distrust=True)
    assert not meets(door, old)
    assert meets(door, site(authority, tmp_path / "new"))


def test_the_old_private_key_is_gone(authority: CertificateAuthority) -> None:
    before = authority.files.ca_key.read_bytes()
    authority.rotate()
    keys = {path.name: path.read_bytes() for path in authority.files.folder.iterdir()}
    assert sorted(keys) == ["ca.crt", "ca.key", "server.crt", "server.key"]
    assert before not in keys.values()
    assert authority.files.ca_key.stat().st_mode & 0o777 == 0o600


def test_a_rotation_that_was_killed_before_the_key_was_in_place_has_not_happened(
    authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, before = site(authority, tmp_path / "old"), authority.certificate

    def written_and_killed(path: Path, data: bytes) -> None:
        write_durably(path, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ca, "write_durably", written_and_killed)
        with pytest.raises(KeyboardInterrupt):
            authority.rotate()
    assert authority.files.ca.read_bytes() != certs.pem(before)
    restarted = CertificateAuthority(authority.files)
    assert restarted.certificate == before
    assert not restarted.ensure_server_certificate(HOSTS)
    door = DoorTls(authority.files)
    assert meets(door, old)
    rotated(restarted, door)
    assert meets(door, old)
    assert len(restarted.authorities.generations) == 2


def test_a_key_without_its_certificate_is_said_at_the_start(authority: CertificateAuthority) -> None:
    certs.save_key(other := authority.files.folder / "other.key", certs.new_transport_key())
    other.replace(authority.files.ca_key)
    with pytest.raises(NexusError, match="is not the certificate of"):
        CertificateAuthority(authority.files)


def test_the_chain_stays_bounded(authority: CertificateAuthority) -> None:
    for _ in range(MOST + 2):
        authority.rotate()
    assert len(CertificateAuthority(authority.files).authorities.generations) == MOST


def test_the_servers_certificate_is_renewed_under_a_running_server(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    keys, door = site(authority, tmp_path / "site"), DoorTls(authority.files)
    a_year_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=400)
    server_key = certs.load_transport_key(authority.files.server_key).public_key()
    ca_key = certs.load_transport_key(authority.files.ca_key)
    expired = certs.issue_server(ca_key, authority.certificate, server_key, HOSTS, a_year_ago)
    authority.files.server.write_bytes(certs.pem(expired))
    door.reload()
    assert not meets(door, keys)
    assert authority.ensure_server_certificate(HOSTS)
    door.reload()
    assert meets(door, keys)
