"""A middlebox that inspects TLS: it ends each connection with a certificate of its own, reads, and connects on.

``middlebox.py FOLDER AUTHORITY PORT:TARGET ...``: what it reads of each connection goes into a file of ``FOLDER``, and
``inspection.crt`` there is the company's authority.  ``AUTHORITY``, the consortium's, is for verifying a client
certificate that it asks for.  While ``FOLDER/exempted`` is there it passes bytes; while ``FOLDER/old`` is, it knows no
TLS 1.3; and while ``FOLDER/fickle`` is, it makes a certificate for each connection, not for each name.
"""

import contextlib
import datetime as dt
import functools
import itertools
import socket
import ssl
import sys
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from nexus_common import certs

FOLDER, AUTHORITY = Path(sys.argv[1]), Path(sys.argv[2])
NOW = dt.datetime.now(dt.UTC)
KEY, LEAF_KEY = certs.new_transport_key(), certs.new_transport_key()
counter = itertools.count(1)


def inspection_authority() -> x509.Certificate:
    """What the company's administrators put into every machine's trust store."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Corporate Inspection CA")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    made = made.serial_number(1).not_valid_before(NOW - dt.timedelta(1)).not_valid_after(NOW + dt.timedelta(99))
    return made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(KEY, hashes.SHA256())


CA = inspection_authority()


@functools.cache
def leaf_for(host: str) -> x509.Certificate:
    """A certificate for a name."""
    return certs.issue_server(KEY, CA, LEAF_KEY.public_key(), [host], NOW)


def context_for(host: str) -> ssl.SSLContext:
    """TLS in the name that was asked for."""
    make = leaf_for.__wrapped__ if (FOLDER / "fickle").exists() else leaf_for
    leaf, path = make(host), FOLDER / f"leaf-{next(counter)}"
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = LEAF_KEY.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
    path.write_bytes(certs.pem(leaf) + certs.pem(CA) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.load_verify_locations(AUTHORITY)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["h2", "http/1.1"])
    if (FOLDER / "old").exists():
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def switch(tls: ssl.SSLObject | ssl.SSLSocket, host: str | None, _: object) -> None:
    """The name that the client asks for, which no client says of an address in figures."""
    if host:
        tls.context = context_for(host)


def forward(source: socket.socket, sink: socket.socket, note: Path | None) -> None:
    """Until either end is gone; ``note`` gets what was read."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if note:
                with note.open("ab") as file:
                    file.write(data)
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(one, socket.SHUT_RDWR)


def serve(plain: socket.socket, target: int) -> None:
    """One connection."""
    near, far, note = plain, socket.create_connection(("127.0.0.1", target), 5), None
    if not (FOLDER / "exempted").exists():
        name = f"{target}-{next(counter)}"
        context = context_for("127.0.0.1")
        context.sni_callback = switch
        try:
            near = context.wrap_socket(plain, server_side=True)
        except OSError:
            (FOLDER / f"refused-{name}").touch()
            far.close()
            return
        (FOLDER / f"accepted-{name}").write_bytes(near.getpeercert(binary_form=True) or b"")
        onward = ssl.create_default_context()
        onward.check_hostname, onward.verify_mode = False, ssl.CERT_NONE
        onward.set_alpn_protocols([near.selected_alpn_protocol() or "http/1.1"])
        far, note = onward.wrap_socket(far), FOLDER / f"read-{name}"
    far.settimeout(None)
    threading.Thread(target=forward, args=(far, near, None), daemon=True).start()
    forward(near, far, note)


def listen(port: int, target: int) -> None:
    """One address."""
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        plain, _ = listener.accept()
        threading.Thread(target=serve, args=(plain, target), daemon=True).start()


if __name__ == "__main__":
    for pair in sys.argv[3:]:
        port, target = map(int, pair.split(":"))
        threading.Thread(target=listen, args=(port, target), daemon=True).start()
    (FOLDER / "inspection.crt").write_bytes(certs.pem(CA))  # last: it says that all listen
    threading.Event().wait()
