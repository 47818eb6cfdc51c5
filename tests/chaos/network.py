"""A byte proxy between a site and the server, which can be cut and slowed down."""

import contextlib
import socket
import threading
import time

CHUNK = 1 << 16


class Wire:
    """Forwards every connection to ``port`` of ``host``; ``cut`` ends all of them and refuses new ones."""

    def __init__(self, host: str, port: int) -> None:
        self.target, self.delay, self.is_cut = (host, port), 0.0, False
        self.chunk, self.down = CHUNK, 0  # bytes that it takes up at once, and that went to the site so far
        self._listener = socket.create_server((host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing passes from now on."""
        self.is_cut = True
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Connections pass again, at full speed."""
        self.is_cut, self.delay = False, 0.0

    def close(self) -> None:
        """No more."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            try:
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.chunk)  # before the connection: its window
                far.connect(self.target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink, share in ((near, far, 0), (far, near, 1)):
                threading.Thread(target=self._forward, args=(source, sink, share), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, share: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self.chunk):
                self.down += share * len(data)
                time.sleep(self.delay)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source}
        source.close()
