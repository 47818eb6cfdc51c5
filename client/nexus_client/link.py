"""The site's only connection: outgoing TLS 1.3 to the pinned consortium, Flower's Fleet protocol, own code only.

Asks for work, hands each message to ``handle`` and sends its answer, once that is in the audit log.  Comes back by
itself after any outage, with growing pauses.  No exception text and no node state leaves the process.
"""

import contextlib
import logging
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from nexus_common import certs, wire
from nexus_common import flower as fl
from nexus_common.errors import NexusError, Refusal
from nexus_common.journal import Journal, subject_of

from nexus_client import flower as fc
from nexus_client.clock import ServerClock
from nexus_client.faults import in_words
from nexus_client.metrics import RECEIVED, SENT, Metrics
from nexus_client.node_auth import SignedTime
from nexus_client.tls import foreign_issuer, tls_context

log = logging.getLogger(__name__)
POLL_SECONDS: Final = 0.25  # only where the server does not hold the question
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
PULL_SECONDS: Final = 60.0
GOOD_BYE_SECONDS: Final = 2.0  # on a dead network it would take half a minute
OBJECTS: Final = "/v1/fleet/pull-object"
Handler = Callable[[wire.Message], wire.Message]


class FleetLink(fc.FleetHttpClient):
    """Flower's Fleet client on a connection that never follows redirects or proxy variables."""

    def __init__(
        self,
        address: str,
        key: EllipticCurvePrivateKey,
        context: ssl.SSLContext,
        on_request: Callable[[int], None],
        clock: ServerClock,
        proxy: str | None = None,
    ) -> None:
        url = f"https://{address}"
        super().__init__(url, interceptors=[SignedTime(key, clock)], verify=context)
        self._client.close()
        self._client = httpx.Client(
            verify=context,
            trust_env=False,
            proxy=proxy,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},  # a packed body could unpack to gigabytes
            event_hooks={
                "request": [lambda request: on_request(_bytes_of(request))],
                "response": [clock.measure, _bounded],
            },
            timeout=httpx.Timeout(30.0, connect=5.0),
            limits=httpx.Limits(keepalive_expiry=60.0),
        )
        # httpx's connections refer to each other: without this they would stay open until Python looks for such rings,
        # and a site has 16.  No thread is in a call of this object any more when it goes.
        weakref.finalize(self, self._client.close).atexit = False


def _bytes_of(request: httpx.Request) -> int:
    """What a request puts on the wire inside of TLS (HTTP/1.1, as h11 writes it)."""
    first = len(request.method) + len(request.url.raw_path) + len("  HTTP/1.1\r\n")
    return first + sum(len(n) + len(v) + len(": \r\n") for n, v in request.headers.raw) + 2 + len(request.content)


def _bounded(response: httpx.Response) -> None:
    """Runs before a body is read: one without length, with too much of it, or packed is not read.

    Where a length and chunks are named, the chunks count: such a body could go on for ever.
    """
    length = response.headers.get("content-length", "")
    most = fl.MAX_BODY_BYTES if response.request.url.path == OBJECTS else fl.MAX_SMALL_BODY_BYTES
    coded = {"content-encoding", "transfer-encoding"} & response.headers.keys()
    if coded or len(length) > 9 or not length.isdigit() or int(length) > most:
        raise httpx.RemoteProtocolError("response without length, too long or packed", request=response.request)


class Link:
    """One site's connection; ``state`` says in words how it is, ``journal`` takes what leaves."""

    def __init__(
        self,
        address: str,
        keys: Path,
        handle: Handler,
        journal: Journal,
        proxy: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.address, self._keys, self._journal, self.clock = address, keys, journal, ServerClock()
        self._proxy, self._metrics = proxy, metrics or Metrics()
        self._key = certs.load_transport_key(keys / "transport.key")
        self._public_key = certs.public_pem(self._key.public_key())
        self.take_certificate()
        self._handle = handle
        self._node: Any = None
        self._stop = threading.Event()
        self._session = 0  # how often ``renew`` has begun one
        self.state = "connecting"
        self.last_contact: float | None = None
        threading.Thread(target=self._heartbeats, name="heartbeat", daemon=True).start()

    def take_certificate(self) -> None:
        """Show the certificate that is on disk now from the next connection on; NexusError where it cannot be used.

        What is in work ends on the old connection, which is closed when nobody uses it any more.
        """
        context = tls_context(self._keys)
        self._link = FleetLink(self.address, self._key, context, self._journal.request, self.clock, self._proxy)

    def run(self) -> None:
        """Serve until ``stop``."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            session = self._session
            try:
                self.take_certificate()  # `join` may have renewed it
                self._connect()
                pause = FIRST_PAUSE_SECONDS
                while not self._stop.is_set():
                    self._work_once()
            except Exception as problem:
                if self._stop.is_set():
                    return
                if self._session != session:
                    continue  # this thread's question ended because ``renew`` began a new session
                # The server is away, restarted (our old node id is unknown there) or refuses us.
                self._node = None
                self._metrics.connection_faults.inc()
                self.state = in_words(problem, self.address, self._foreign_issuer(problem))
                log.warning("%s; again in %.1f s", self.state, pause)
                if not isinstance(problem, httpx.HTTPError | fl.ObjectPushError | ValueError | NexusError):
                    log.error("this was not expected", exc_info=problem)
                self._stop.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311  jitter, not a secret
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _foreign_issuer(self, problem: Exception) -> str | None:
        """Who inspects the connection, where that is why TLS failed; None where it is not, or cannot be told."""
        if "[SSL: " in str(problem):
            with contextlib.suppress(OSError, ValueError):
                return foreign_issuer(problem, self.address, self._proxy, self._keys)
        return None

    def renew(self) -> bool:
        """Begin a new session, from another thread: the server gives up what is in work here and asks anew.

        False where that has to be tried again.
        """
        if self._node is None:
            return True  # the next connection is a new session anyway
        self._session += 1  # before it begins: the server ends the question of the old one first, and that is no fault
        try:
            self._connect()
        except (httpx.HTTPError, ValueError) as problem:
            log.info("no new session yet: %s", type(problem).__name__)
            return False
        return True

    def stop(self) -> None:
        """End ``run`` after the message in work; say good-bye, upon which the server ends the question that it holds.

        No connection is closed here: another thread may be reading from it, and OpenSSL would go on with the next file
        that gets its descriptor, and write into that.
        """
        self._stop.set()
        node, self._node = self._node, None
        if node is not None:
            leaving = threading.Thread(target=self._leave, args=(node,), name="good-bye", daemon=True)
            leaving.start()
            leaving.join(GOOD_BYE_SECONDS)

    def _leave(self, node: Any) -> None:
        try:
            self._link.DeactivateNode(fl.DeactivateNodeRequest(node_id=node.node_id))
        except (httpx.HTTPError, ValueError) as problem:
            log.info("left without good-bye: %s", type(problem).__name__)

    def _connect(self) -> None:
        """Begin a session."""
        request = fl.ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=fl.LEASE_SECONDS)
        self._node = fl.Node(node_id=self._link.ActivateNode(request).node_id)
        self.state, self.last_contact = "connected", time.time()
        log.info("connected to %s", self.address)

    def _heartbeats(self) -> None:
        while not self._stop.wait(fl.HEARTBEAT_SECONDS):
            node = self._node
            if node is None:
                continue
            try:
                self._link.SendNodeHeartbeat(
                    fl.SendNodeHeartbeatRequest(node=node, heartbeat_interval=fl.LEASE_SECONDS)
                )
                self.last_contact = time.time()
            except Exception as problem:  # noqa: BLE001  as in ``run``: a silent site would be left out of every round
                log.debug("heartbeat failed (%s); the main loop meets the same fault", type(problem).__name__)

    def _work_once(self) -> None:
        """Ask for work; where there is some, do it and answer."""
        asked = time.monotonic()
        answer = self._link.PullMessages(fl.PullMessagesRequest(node=self._node))
        self.last_contact = time.time()
        if not answer.messages_list:
            if time.monotonic() - asked < POLL_SECONDS:
                self._stop.wait(POLL_SECONDS)
            return
        outer, ids = fl.received(answer)
        try:
            instruction = self._pull(outer, ids)
        except fl.ObjectPullError:
            log.info("the server withdrew a message")
            return
        asks: wire.Message | None = None
        try:
            parcel = fl.parcel_of(instruction)
            self._metrics.bytes[RECEIVED].inc(parcel.size)
            asks = wire.decode(parcel)
            made = self._handle(asks)
        except Refusal as refusal:
            log.warning("refused: %s", refusal)
            made = wire.Refused(refusal.code)
        except Exception as fault:
            known = isinstance(fault, NexusError)
            text = fault if known else type(fault).__name__
            log.error("a message could not be worked on; this text stays here: %s", text, exc_info=not known)
            made = wire.Refused("site-failed")
        if isinstance(made, wire.Refused):
            self._metrics.refusals[made.code].inc()
        self._journal.message(made, **subject_of(asks), recipient=self.address)
        parcel = wire.encode(made)
        self._push(fl.reply(parcel, instruction))
        self._metrics.bytes[SENT].inc(parcel.size)

    def _pull(self, outer: Any, ids: list[str]) -> Any:
        if fl.has_all(outer):
            return outer
        run_id, object_id = outer.metadata.run_id, ids[-1]
        pull = fl.make_pull_object_fn_protobuf(self._link.PullObject, self._node, run_id)

        def pull_checked(part_id: str) -> bytes:
            content: bytes = pull(part_id)
            if fl.get_object_id(content) != part_id:
                raise ValueError("a part does not match its hash")  # Flower checks this on the server only
            return content

        contents = fl.pull_objects(ids, pull_checked, max_time=PULL_SECONDS, initial_backoff=0.05, backoff_cap=1.0)
        self._link.ConfirmMessageReceived(
            fl.ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=object_id)
        )
        return fl.whole_message(object_id, contents, outer.metadata)

    def _push(self, reply: Any) -> None:
        with fl.no_object_id_recompute():
            fl.name_by_content(reply)
            objects, tree = fl.get_all_nested_objects(reply), fl.get_object_tree(reply)
            answer = self._link.PushMessages(
                fl.PushMessagesRequest(
                    node=self._node,
                    messages_list=[fl.message_to_proto(ahead := fl.sent_ahead(reply))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.0],
                )
            )  # how long it took stays here
            if not answer.objects_to_push:  # how Flower says "too late"
                log.info("the answer came too late and was not taken")
            if fl.has_all(ahead):
                return
            push = fl.make_push_object_fn_protobuf(
                self._link.PushObject, self._node, reply.metadata.run_id, answer.session_id
            )
            fl.push_objects(objects, push, object_ids_to_push=set(answer.objects_to_push))
