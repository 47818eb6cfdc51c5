"""A server with the consortium's own certificate does its worst to a real agent, which holds little and goes on."""

import contextlib
import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import psutil
import pytest
from nexus_common import flower as fl
from nexus_common.wire import Parcel

from tests.processes.harness import Federation, until

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict  # isort: skip  only after our own module
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse  # isort: skip
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse  # isort: skip
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse  # isort: skip

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITE: Final = "bank-a"
NODE: Final = 5
MEGABYTES: Final = 200e6  # twice the largest message and its parts
Answer = bytes | Iterator[bytes]


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", "content-type: application/protobuf", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def message(records: dict[str, Any]) -> bytes:
    """An answer with an instruction of any content."""
    made = Message(RecordDict(records), dst_node_id=NODE, message_type="train.ask", ttl=60)
    fl.name_by_content(made)
    return http(
        PullMessagesResponse(
            messages_list=[fl.message_to_proto(made)], message_object_trees=[fl.get_object_tree(made)]
        ).SerializeToString()
    )


def without_content(tree: ObjectTree) -> bytes:
    """An instruction whose parts are to be asked for."""
    made = fl.message_to_proto(fl.instruction(Parcel("ask", {"data": b"x"}), NODE, 60))
    made.ClearField("content")
    made.content.SetInParent()
    return http(PullMessagesResponse(messages_list=[made], message_object_trees=[tree]).SerializeToString())


def wide(children: int) -> ObjectTree:
    tree = ObjectTree(object_id="ab" * 32)
    for number in range(children):
        tree.children.add().object_id = f"{number:064x}"
    return tree


def named(parts: dict[str, bytes]) -> ObjectTree:
    *others, last = parts
    tree = ObjectTree(object_id=last)
    for other in others:
        tree.children.add().object_id = other
    return tree


def deep(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        size = len(data)
        length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) if size else b"\0"
        data = b"\x12" + length + data
    return data


def endless(head: str, piece: bytes, count: int, pause: float = 0) -> Iterator[bytes]:
    yield head.encode() + b"\r\n\r\n"
    for _ in range(count):
        yield piece
        time.sleep(pause)


def packed(encoding: str, data: bytes) -> bytes:
    return http(data, f"content-encoding: {encoding}")


CHUNK: Final = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
HUGE: Final = Array(dtype="float64", shape=(10**6, 10**6), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00v\x00{")
OBJECTS: Final = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"\x80\x04cos\nsystem\n.")
BIG: Final = {  # parts under their right names
    fl.get_object_id(part): part for part in (b"Array  6000000\0" + bytes([number]) * 6_000_000 for number in range(8))
}
ASK: Final = {"kind": "ask", "data": b"x"}

ATTACKS: dict[str, Callable[[], Answer]] = {
    "gzip": lambda: packed("gzip", gzip.compress(bytes(50 << 20))),
    "deflate": lambda: packed("deflate", zlib.compress(bytes(50 << 20))),
    "br": lambda: packed("br", bytes(2000)),
    "zstd": lambda: packed("zstd", bytes(2000)),
    "a length and chunks": lambda: endless(
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked", CHUNK, 300
    ),
    "no length": lambda: endless("HTTP/1.1 200 OK", CHUNK, 300),
    "chunks of an error": lambda: endless("HTTP/1.1 500 No\r\ntransfer-encoding: chunked", CHUNK, 300),
    "6 MB of messages": lambda: http(b"\x0a\x00" * (3 << 20)),
    "60 kB of messages": lambda: http(b"\x0a\x00" * 30_000),
    "60 kB of trees": lambda: http(b"\x0a\x00" + b"\x12\x00" * 30_000),
    "a deep tree": lambda: http(b"\x0a\x00" + deep(5000)),
    "redirect": lambda: http(b"", "location: https://127.0.0.1:9/", status="302 Found"),
    "10 MB of headers": lambda: endless("HTTP/1.1 200 OK\r\nx: " + "y" * 1000, b"z: " + b"a" * 60_000 + b"\r\n", 160),
    "interim answers": lambda: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000 + http(b""),
    "no HTTP": lambda: b"\x1b[2J" + b"A" * 90_000 + b"\r\n\r\n",
    "a year beyond the calendar": lambda: http(b"", "date: Fri, 31 Dec 9999 23:59:59 -0100"),
    "a byte a second": lambda: endless("HTTP/1.1 200 OK\r\ncontent-length: 60000", b"\0", 8, 1),
    "a shape of 10^12": lambda: message(
        {"nexus": ConfigRecord({"kind": "masked"}), "vector": ArrayRecord({"vector": HUGE})}
    ),
    "pickled objects": lambda: message({"nexus": ConfigRecord(ASK), "vector": ArrayRecord({"vector": OBJECTS})}),
    "900 records": lambda: message({f"r{number}": ConfigRecord() for number in range(300)}),
    "thousands of parts": lambda: without_content(wide(800)),
    "parts of 6 MB": lambda: without_content(wide(7)),
    "good parts of 6 MB": lambda: without_content(named(BIG)),
    "good parts again": lambda: without_content(named(BIG)),
    "text for a number": lambda: message({"nexus": ConfigRecord({"kind": "train", "round": "\ud7ff\x1b[2J"})}),
    "no message": lambda: http(PullMessagesResponse(message_object_trees=[wide(0)]).SerializeToString()),
    "no tree": lambda: http(
        PullMessagesResponse(
            messages_list=[fl.message_to_proto(fl.instruction(Parcel("ask", {}), NODE, 60))]
        ).SerializeToString()
    ),
}
USUAL: Final[dict[str, Callable[[], bytes]]] = {
    "activate-node": lambda: http(ActivateNodeResponse(node_id=NODE).SerializeToString()),
    "send-node-heartbeat": lambda: http(SendNodeHeartbeatResponse(success=True).SerializeToString()),
}


def part(content: bytes) -> bytes:
    return http(
        PullObjectResponse(object_found=True, object_available=True, object_content=content).SerializeToString()
    )


class Mallory:
    """A server at the consortium's address, with its keys; each question for work is answered with the next attack."""

    def __init__(self, federation: Federation) -> None:
        keys = federation.home / "server" / "keys"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(keys / "server.crt", keys / "server.key")
        self._listener = socket.create_server(("127.0.0.1", federation.port))
        self.served: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), self._context.wrap_socket(plain, server_side=True) as tls:
            file = tls.makefile("rb")
            while line := file.readline():
                path, length = line.split()[1].decode().rpartition("/")[2], 0
                while (header := file.readline().strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                body = file.read(length)
                if path == "pull-object":
                    wanted = fl.PullObjectRequest.FromString(body).object_id
                    tls.sendall(part(BIG.get(wanted, next(iter(BIG.values())))))
                elif path != "pull-messages":
                    tls.sendall(USUAL.get(path, lambda: http(b""))())
                elif len(self.served) == len(ATTACKS):
                    time.sleep(1)
                    tls.sendall(http(b""))
                else:
                    name = list(ATTACKS)[len(self.served)]
                    self.served.append(name)
                    answer = ATTACKS[name]()
                    for piece in [answer] if isinstance(answer, bytes) else answer:
                        tls.sendall(piece)
                    if not isinstance(answer, bytes) or name == "no HTTP":
                        return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept of the other thread, too
        self._listener.close()


@pytest.mark.timeout(300)
def test_an_agent_outlives_every_answer_in_little_memory_and_goes_on() -> None:
    mine = fl.TaskIdentity  # Flower asks for it when a message is made
    mine.run_id, mine.task_id, mine.node_id = 1, 1, fl.SUPERLINK_NODE_ID
    with Federation() as federation:
        federation.found(SITE)
        federation.start(SITE)
        process = psutil.Process(federation.processes[SITE].pid)
        federation.end("server")
        before, peaks = process.memory_info().rss, dict[str, float]()
        mallory = Mallory(federation)
        end = time.monotonic() + 200
        while len(mallory.served) < len(ATTACKS):
            assert time.monotonic() < end, f"it stopped at {mallory.served[-1:]}: {federation.own_log(SITE)[-2000:]}"
            name = mallory.served[-1] if mallory.served else "the first"
            peaks[name] = max(peaks.get(name, 0), process.memory_info().rss - before)
            time.sleep(0.02)
        time.sleep(3)
        peaks["the end"] = process.memory_info().rss - before
        mallory.close()
        print({name: f"{peak / 1e6:+.0f} MB" for name, peak in peaks.items()})
        federation.start("server")
        until("it goes on with the honest server", lambda: federation.connected(SITE))
        log, state = federation.own_log(SITE), federation.home / "sites" / SITE / "state"
        assert "this was not expected" not in log
        assert "\x1b" not in log
        assert len(log) < 200_000
        assert (state / "audit.jsonl").stat().st_size < 50_000
        assert max(peaks.values()) < MEGABYTES, peaks
