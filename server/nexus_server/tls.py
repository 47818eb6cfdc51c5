"""The door's side of TLS: 1.3 only, a client certificate required, trust in the consortium's CA alone."""

import logging
import ssl

from nexus_server.ca import CertificateFiles

log = logging.getLogger(__name__)


class DoorTls:
    """What connections are met with: at each handshake the certificates as they are on disk by then.

    The server's certificate is written last, so a change of it says that the others are there.  A fault refuses the
    handshake: an older context might trust a key that counts no more.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files, self._version = files, (0, 0)
        self.context = self._made()
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        try:  # OpenSSL asks at every handshake, also where no name was sent
            found = self._files.server.stat()
            if (version := (found.st_mtime_ns, found.st_ino)) != self._version:
                self._current, self._version = self._made(), version
        except OSError as problem:
            log.error("the certificates cannot be used, nobody is let in: %s", problem)
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # no session resumption: a removed site needs a new handshake
        context.load_cert_chain(self._files.server, self._files.server_key)
        context.load_verify_locations(self._files.ca)
        return context
