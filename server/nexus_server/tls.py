"""The door's side of TLS: 1.3 only, a client certificate required, trust in the consortium's CA alone."""

import ssl

from nexus_server.ca import CertificateFiles


class DoorTls:
    """What new connections are met with; ``reload`` takes certificates that were renewed under a running server."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self.reload()
        self.context = self._made()
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Use the files as they are now, from the next handshake on."""
        self._current = self._made()

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current  # OpenSSL asks at every handshake, also where no name was sent

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # no session resumption: a removed site needs a new handshake
        context.load_cert_chain(self._files.server, self._files.server_key)
        context.load_verify_locations(self._files.ca)
        return context
