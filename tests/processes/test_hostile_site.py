"""An enrolled site, and strangers, who do their worst to a real server while three other sites' rounds go on."""

import contextlib
import gzip
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import psutil
import pytest
from nexus_client.tls import tls_context
from nexus_common import certs
from nexus_common import flower as fl
from nexus_common.wire import Parcel
from nexus_server.door import MAX_CONNECTIONS_OF_A_SITE
from nexus_server.gate import FLEET_PATHS

from tests.federation.sim import SimSite
from tests.fuzz.mutations import spoilt
from tests.processes.harness import Federation, until
from tests.processes.test_door import activated

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict  # isort: skip  only after our own module
from flwr.proto.message_pb2 import PushObjectResponse  # isort: skip

pytestmark = pytest.mark.processes
SITES: Final = ("bank-a", "bank-b", "hospital-a", "mallory")
MEGABYTES: Final = 120e6
ROUNDS: Final = 2  # that go on beside an attack


class Raw:
    """Bytes where Flower's client takes a message."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self, deterministic: bool = False) -> bytes:
        return self.data


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES)
        plan = made.plan("busy", SITES, rounds=5000, adapter={"salience": False}, start="quorum", gather_seconds=1.0)
        for site in SITES[:3]:
            made.link(site, SimSite(site, plan, certs.load_identity(made.keys(site) / "identity.key")))
        made.train(plan, approved_by=())
        mine = fl.TaskIdentity  # Flower asks for it when a message is made
        mine.run_id, mine.task_id, mine.node_id = 1, 1, fl.SUPERLINK_NODE_ID
        until("rounds are made", lambda: made.server_status()["round"] >= ROUNDS)
        yield made
        assert "met a fault" not in made.log("server")


@pytest.fixture(autouse=True)
def calm(federation: Federation) -> Iterator[None]:
    """Whatever a test does: the others' rounds went on, and the server holds hardly more than before."""
    process = psutil.Process(federation.processes["server"].pid)
    before, done, peak, over = process.memory_info().rss, federation.server_status()["round"], [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak.append(process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    yield
    until("the rounds go on", lambda: federation.server_status()["round"] >= done + ROUNDS)
    over.set()
    watching.join()
    grown = max(peak) - before
    print(f"server: {before / 1e6:.0f} MB before, at most {grown / 1e6:+.0f} MB")
    assert grown < MEGABYTES, f"{grown / 1e6:.0f} MB more"


def opened(federation: Federation, site: str = "mallory") -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", federation.port), 10)
    return tls_context(federation.keys(site)).wrap_socket(plain, server_hostname="127.0.0.1")


def poured(federation: Federation, head: bytes, piece: bytes, megabytes: int) -> bytes:
    """A request whose body does not end; what the server said before it closed."""
    with opened(federation) as tls:
        tls.settimeout(5)
        with contextlib.suppress(OSError):
            tls.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n" + PROTOBUF + head + b"\r\n\r\n")
            for _ in range(megabytes):
                tls.sendall(piece)
        with contextlib.suppress(OSError):
            return tls.recv(100)
    return b""


PROTOBUF: Final = b"Content-Type: application/protobuf\r\n"  # nothing else is read at all
CHUNK: Final = b"100000\r\n" + bytes(1 << 20) + b"\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", CHUNK),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", CHUNK),
        (b"Transfer-Encoding: chunked", CHUNK),
        (b"Content-Length: 5", bytes(1 << 20)),
        (b"Content-Length: 5\r\nContent-Length: 6", bytes(1 << 20)),
        (b"Content-Length: " + b"9" * 5000, bytes(1 << 20)),
        (b"Content-Length: 4000000000", bytes(1 << 20)),
    ],
    ids=["both", "chunked first", "chunked", "more than said", "two lengths", "5000 digits", "4 GB"],
)
def test_a_body_without_an_end_is_not_kept(federation: Federation, head: bytes, piece: bytes) -> None:
    answer = poured(federation, head, piece, 200)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


def test_packed_bodies_are_not_unpacked(federation: Federation) -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    base = f"https://127.0.0.1:{federation.port}"
    headers = {"content-encoding": "gzip", "content-type": "application/protobuf"}
    with httpx.Client(base_url=base, verify=tls_context(federation.keys("mallory")), trust_env=False) as http:
        for path in sorted(FLEET_PATHS):
            assert http.post(path, content=bomb, headers=headers).status_code >= 400


def bodies(node: fl.Node, pem: bytes) -> dict[str, bytes]:
    """A good request of the site itself on every route but the one that ends its session."""
    question = fl.instruction(Parcel("prepare", {"plan": b"x"}), node.node_id, 60)
    fl.name_by_content(question)
    answer = fl.reply(Parcel("readiness", {"state": "ready"}), question)
    fl.name_by_content(answer)
    message, tree = fl.message_to_proto(answer), fl.get_object_tree(answer)
    object_id = "ab" * 32
    requests: dict[str, Any] = {
        "activate-node": fl.ActivateNodeRequest(public_key=pem, heartbeat_interval=10),
        "deactivate-node": fl.DeactivateNodeRequest(node_id=node.node_id),
        "send-node-heartbeat": fl.SendNodeHeartbeatRequest(node=node, heartbeat_interval=10),
        "pull-messages": fl.PullMessagesRequest(node=fl.Node(node_id=1)),  # its own would be held for 15 s
        "push-messages": fl.PushMessagesRequest(node=node, messages_list=[message], message_object_trees=[tree]),
        "pull-object": fl.PullObjectRequest(node=node, run_id=1, object_id=object_id),
        "push-object": fl.PushObjectRequest(node=node, run_id=1, object_id=object_id, object_content=b"Array  0\0"),
        "confirm-message-received": fl.ConfirmMessageReceivedRequest(node=node, run_id=1, message_object_id=object_id),
    }
    assert {f"/v1/fleet/{name}" for name in requests} == FLEET_PATHS
    return {name: request.SerializeToString() for name, request in requests.items()}


def test_spoilt_requests_on_every_route_are_refused_or_answered(federation: Federation) -> None:
    link, node = activated(federation, "mallory")
    pem = certs.public_pem(certs.load_transport_key(federation.keys("mallory") / "transport.key").public_key())
    good, rng = bodies(node, pem), random.Random(7)  # noqa: S311  which bytes are spoilt
    answers = []
    for number in range(240):
        name = sorted(good)[number % len(good)]
        data = spoilt(good[name], rng.choice(list(good.values())), rng)
        try:
            link._unary_unary(
                path=f"/v1/fleet/{name}", rpc_method=name, request=Raw(data), response_type=PushObjectResponse
            )
            answers.append(200)
        except httpx.HTTPStatusError as refused:
            answers.append(refused.response.status_code)
        except (ValueError, httpx.TransportError):
            answers.append(0)
    assert answers.count(0) < 24
    assert any(code >= 400 for code in answers)
    assert not {code for code in answers if code >= 500} - {500, 502, 503}


def replies(question: Message) -> list[Message]:
    """Answers that hold what no site of ours would send."""
    huge = Array(dtype="float64", shape=(10**6, 10**6), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00v\x00{'x'}")
    objects = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"\x80\x04\x95cos\nsystem\n.")
    kind = ConfigRecord({"kind": "masked"})
    found = [
        Message(RecordDict({"nexus": kind, "vector": ArrayRecord({"vector": array})}), reply_to=question)
        for array in (huge, objects)
    ]
    many = RecordDict({f"r{number}": ConfigRecord() for number in range(900)})
    return [*found, Message(many, reply_to=question), fl.reply(Parcel("masked", {}, bytes(1 << 20)), question)]


def test_hostile_answers_and_uploads_that_never_end_leave_nothing(federation: Federation) -> None:
    """mallory answers each question with another attack: shapes, types, thousands of records, parts left out."""
    link, node = activated(federation, "mallory")
    answered, ends = 0, time.monotonic() + 20
    while answered < 2 and time.monotonic() < ends:
        link.SendNodeHeartbeat(fl.SendNodeHeartbeatRequest(node=node, heartbeat_interval=10))
        answer = link.PullMessages(fl.PullMessagesRequest(node=node))
        if not answer.messages_list:
            continue
        question, _ = fl.received(answer)
        for hostile in replies(question):
            with fl.no_object_id_recompute():
                fl.name_by_content(hostile)
                objects, tree = fl.get_all_nested_objects(hostile), fl.get_object_tree(hostile)
                push = fl.PushMessagesRequest(
                    node=node, messages_list=[fl.message_to_proto(hostile)], message_object_trees=[tree]
                )
                for _ in range(10):
                    with contextlib.suppress(httpx.HTTPError, ValueError):
                        taken = link.PushMessages(push)
                        for object_id in list(taken.objects_to_push)[:-1]:
                            link.PushObject(
                                fl.PushObjectRequest(
                                    node=node,
                                    run_id=question.metadata.run_id,
                                    object_id=object_id,
                                    object_content=objects[object_id].deflate(),
                                    session_id=taken.session_id,
                                )
                            )
        answered += 1
    assert answered
    link.DeactivateNode(fl.DeactivateNodeRequest(node_id=node.node_id))


def test_answers_to_nothing_are_forgotten(federation: Federation) -> None:
    link, node = activated(federation, "mallory")
    data = bodies(node, b"")["push-messages"]
    for _ in range(1500):
        with contextlib.suppress(httpx.HTTPStatusError):
            link._unary_unary(
                path="/v1/fleet/push-messages", rpc_method="x", request=Raw(data), response_type=PushObjectResponse
            )


@contextlib.contextmanager
def held(open_one: Callable[[], socket.socket], count: int) -> Iterator[list[socket.socket]]:
    """So many connections at once, those that came about."""
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                found.append(open_one())
        yield found
    finally:
        for one in found:
            one.close()


def is_closed(one: socket.socket) -> bool:
    one.settimeout(0.001)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_connections_that_dawdle_hold_up_nobody(federation: Federation) -> None:
    """Headers a byte a second, answers that nobody reads, handshakes that never end, and several hundred at once."""

    def stranger() -> socket.socket:
        return socket.create_connection(("127.0.0.1", federation.port), 5)

    begun = federation.server_status()["round"]
    with (
        held(stranger, 600) as silent,
        held(lambda: opened(federation), 3 * MAX_CONNECTIONS_OF_A_SITE) as slow,
        held(lambda: opened(federation), 200) as more,
    ):
        assert len(silent) == 600
        for tls in slow[:MAX_CONNECTIONS_OF_A_SITE]:
            with contextlib.suppress(OSError):
                tls.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
        for second in range(6):
            for tls in [*slow, *more]:
                with contextlib.suppress(OSError):
                    tls.send(b"\r" if second == 5 else b"X")
            for one in silent[::2]:
                with contextlib.suppress(OSError):
                    one.send(b"\x16")
            time.sleep(1)
        until("handshakes that do not end are given up", lambda: all(is_closed(one) for one in silent), 30)
        until("rounds go on beside them", lambda: federation.server_status()["round"] >= begun + ROUNDS)


def test_questions_without_end_that_nobody_reads_the_answers_of(federation: Federation) -> None:
    """Requests one after the other on one connection, whose answers stay unread."""
    with held(lambda: opened(federation), MAX_CONNECTIONS_OF_A_SITE) as lines:
        for tls in lines:
            tls.settimeout(0.2)
            with contextlib.suppress(OSError):
                for _ in range(300):
                    tls.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * 100)
