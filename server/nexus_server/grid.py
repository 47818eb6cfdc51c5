"""Flower's Grid on the LinkState of this process: no Runtime API, no ServerApp process, no app bundle.

Unlike Flower's own it answers every instruction exactly once, with a reply or an error whose ``src_node_id`` is the
site, looks when a reply comes and every 20 ms instead of every 3 s, and believes only metadata that the door has
checked.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from nexus_common import flower as fl
from nexus_common.errors import Refusal

from nexus_server import flower as fs
from nexus_server.exchange import DEADLINE, MALFORMED, NOT_CONNECTED, RESTARTED, SILENT

log = logging.getLogger(__name__)
SILENCE_SECONDS: Final = 10.0  # without any request after which a site counts as lost
LOOK_SECONDS: Final = 0.02
TASK_HEARTBEAT_SECONDS: Final = 20.0  # Flower fails a run whose task is silent for 60 s


class SiteState(fs.InMemoryLinkState):
    """Flower's LinkState, except that a client killed seconds ago may activate again at once."""

    def __init__(self) -> None:
        self.parts = fs.InMemoryObjectStore()
        super().__init__(fs.NoOpFederationManager(), self.parts)
        self.on_activate: Callable[[int], None] = lambda _: None
        self.on_restart: Callable[[int], None] = lambda _: None
        self.came = threading.Event()  # set at every reply

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Start a node's session, ending an older one of the same site."""
        with self.lock:
            self.on_activate(node_id)
            self.on_restart(node_id)
            self.deactivate_node(node_id)  # the stock state refuses while the node still counts as online
            return bool(super().activate_node(node_id, heartbeat_interval))

    def store_message_and_object_tree(
        self, message: fl.Message, object_tree: Any, session_id: str
    ) -> tuple[bool, list[str]]:
        """Take a message with its tree, once.

        Flower takes another tree of the same reply and adds its parts to the store, and keeps a session for each reply
        that it refuses: a site could go on with either until this process has no memory left.
        """
        with self.lock:
            again = message.metadata.message_id in self.message_res_store
            stored, missing = (
                (False, []) if again else super().store_message_and_object_tree(message, object_tree, session_id)
            )
            if not stored:
                self._cleanup_push_session(session_id, cleanup_messages=False)
            return stored, missing

    def store_message_res(self, message: fl.Message) -> str | None:
        """Keep a reply and wake the thread that waits for it."""
        stored: str | None = super().store_message_res(message)
        self.came.set()
        return stored


class LocalGrid(fs.Grid):
    """One run, in this process.  ``ring(node)`` is called when an instruction for a node is stored."""

    def __init__(self) -> None:
        self.state = SiteState()
        self.state.on_activate = self._client_started
        self.ring: Callable[[int], None] = lambda _: None
        self.node_of: dict[str, int] = {}
        self.site_of: dict[int, str] = {}
        self._keys: dict[str, bytes] = {}  # by site: the key that its node is registered with
        self.seen: dict[int, float] = {}  # monotonic time of a node's last authenticated request
        self._pending: dict[str, fl.Message] = {}  # instructions without an answer, by message id
        self._orphans: set[str] = set()  # those that a client took and then restarted
        self.run_id = self.state.create_run(
            None, None, None, {}, fs.NOOP_FEDERATION_ID, None, fl.NOOP_FLWR_AID, fs.TaskType.SERVER_APP
        )
        self.task_id = self.run.primary_task_id
        # The Fleet API refuses every message unless the run's task is running.
        if not (self.state.claim_task(self.task_id) and self.state.activate_task(self.task_id)):
            raise RuntimeError("Flower did not start the run")
        # Message() reads these process-wide values: one Flower run per server process.
        identity = fl.TaskIdentity
        identity.run_id, identity.task_id, identity.node_id = self.run_id, self.task_id, fl.SUPERLINK_NODE_ID
        self._closed = threading.Event()
        threading.Thread(target=self._keep_running, name="flower-task", daemon=True).start()

    def _keep_running(self) -> None:
        while not self._closed.wait(TASK_HEARTBEAT_SECONDS):
            self.state.acknowledge_task_heartbeat(self.task_id)

    def add_site(self, site: str, public_pem: bytes) -> None:
        """Register an enrolled site; node ids are random and new at every start.

        Flower takes a key once and for ever: where a site was expelled and comes back with its key, its node does too.
        """
        node = self.state.get_node_id_by_public_key(public_pem)
        node = node or self.state.create_node(fl.NOOP_FLWR_AID, site, public_pem, 0)
        self.node_of[site], self.site_of[node], self._keys[site] = node, site, public_pem

    def sites(self) -> dict[str, bytes]:
        """The registered sites, each with its public key."""
        return dict(self._keys)

    def expel(self, site: str) -> None:
        """Its key counts no more: it is away from now on, and a question of it that is held ends."""
        node = self.node_of.pop(site)
        del self.site_of[node], self._keys[site]
        self.seen.pop(node, None)
        self.ring(node)

    def touch(self, node: int) -> None:
        """An authenticated request of this node arrived."""
        if node in self.site_of:
            self.seen[node] = time.monotonic()

    def left(self, node: int) -> None:
        """The node said good-bye."""
        self.seen.pop(node, None)

    def has_work(self, node: int) -> bool:
        """Whether an instruction waits for this node."""
        return any(m.metadata.dst_node_id == node and not m.metadata.delivered_at for m in list(self._pending.values()))

    def close(self) -> None:
        """End the Flower run."""
        self._closed.set()
        self.state.finish_task(self.task_id, fl.SubStatus.COMPLETED, "")

    def set_run(self, *_: Any, **__: Any) -> None:
        """Not for this grid: its run is created with it."""
        raise RuntimeError("the run is created with the grid")

    @property
    def run(self) -> Any:
        """Flower's record of the run."""
        return self.state.get_run_info(run_ids=[self.run_id])[0]

    def create_message(self, *_: Any, **__: Any) -> fl.Message:
        """Not for this grid: ``flwr.app.Message`` is the public way."""
        raise RuntimeError("use flwr.app.Message")

    def get_node_ids(self) -> list[int]:
        """The nodes heard of within ``SILENCE_SECONDS``."""
        now = time.monotonic()
        return [node for node, seen in list(self.seen.items()) if now - seen < SILENCE_SECONDS]

    def push_messages(self, messages: Iterable[fl.Message]) -> list[str | None]:  # type: ignore[override]
        """Store instructions; None for each that Flower refuses (its node never activated)."""
        ids: list[str | None] = []
        for message in messages:
            with fl.no_object_id_recompute():
                fl.name_by_content(message)
                objects, tree = fl.get_all_nested_objects(message), fl.get_object_tree(message)
                session = self.state.start_session(self.run_id)
                ahead = fl.sent_ahead(message)
                stored, missing = self.state.store_message_and_object_tree(ahead, tree, session)
                for object_id in () if fl.has_all(ahead) else missing:
                    self.state.store_object(self.run_id, session, object_id, objects[object_id].deflate())
            ids.append(message.metadata.message_id if stored else None)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[fl.Message]:
        """New replies without their content, each only once."""
        return list(self.state.get_message_res(set(message_ids), self.run_id))

    def send_and_receive(self, messages: Iterable[fl.Message], *, timeout: float | None = None) -> list[fl.Message]:
        """Send, and return exactly one message for each: the site's reply, or our Error with what went wrong."""
        sent = list(messages)
        answers: list[fl.Message] = []
        arriving: dict[str, fl.Message] = {}
        end = time.monotonic() + (timeout or 3600.0)
        self._orphans.clear()
        pending: dict[str, fl.Message] = {}
        for message, ins_id in zip(sent, self.push_messages(sent), strict=True):
            if ins_id is None:
                answers.append(_error(message, NOT_CONNECTED))
            else:
                pending[ins_id] = message
        self._pending = pending
        for message in pending.values():
            self.ring(message.metadata.dst_node_id)
        try:
            while pending:
                self.state.came.clear()
                for reply in self.pull_messages(pending.keys() - arriving.keys()):
                    arriving[reply.metadata.reply_to_message_id] = reply
                for ins_id, message in list(pending.items()):
                    if (answer := self._answer(ins_id, message, arriving.get(ins_id), end)) is not None:
                        answers.append(answer)
                        self.state.delete_messages({ins_id})
                        del pending[ins_id]
                if pending:
                    self.state.came.wait(LOOK_SECONDS)
        finally:
            self._forget(pending)
        return answers

    def _forget(self, pending: dict[str, fl.Message]) -> None:
        """Drop all of Flower's objects: there is one trip at a time, and a site's tree could keep its parts alive."""
        self.state.delete_messages(set(pending))
        self.state.delete_sessions_in_run(self.run_id)
        self.state.object_store.clear()

    def _answer(self, ins_id: str, message: fl.Message, reply: fl.Message | None, end: float) -> fl.Message | None:
        """The one answer to an instruction, or None while it may still come."""
        try:
            whole = self._whole(reply) if reply else None
        except Exception as fault:  # noqa: BLE001  a site must not be able to stop the round
            log.warning("a reply could not be decoded: %s", type(fault).__name__)
            return _error(message, MALFORMED)
        if whole is not None:
            if whole.metadata.src_node_id == fl.SUPERLINK_NODE_ID:  # Flower's own error
                return _error(message, (whole.has_error() and whole.error.reason) or "Flower answered itself")
            # A NEXUS site sends no Flower errors, and words of its own choice reach no log and no screen.
            return _error(message, MALFORMED) if whole.has_error() else whole
        problem = self._problem(ins_id, message, end)
        return _error(message, problem) if problem else None

    def _whole(self, reply: fl.Message) -> fl.Message | None:
        """The reply with its content, or None while the site is still uploading it."""
        if fl.has_all(reply):
            return reply
        reply_id = reply.metadata.message_id
        contents: dict[str, bytes] = {}
        for object_id in self._parts(reply_id):
            if not (content := self.state.get_object(self.run_id, object_id)):
                return None
            contents[object_id] = content
        # The site wrote the inner metadata freely; only the outer copy was checked on arrival.
        return fl.whole_message(reply_id, contents, reply.metadata)

    def _parts(self, reply_id: str) -> list[str]:
        """The ids of a reply's parts; Refusal ``malformed`` for more than a message has.

        Each is looked at once: parts may name each other's parts, over the trees of several sites, so that Flower's own
        walk from the top would have no end in sight.
        """
        found: set[str] = set()
        left, parts = [reply_id], self.state.parts
        with parts.lock_store:
            while left:
                if (object_id := left.pop()) in found:
                    continue
                if len(found) == fl.MAX_PARTS:
                    raise Refusal("malformed", f"a reply of more than {fl.MAX_PARTS} parts")
                found.add(object_id)
                left += parts.store[object_id].child_object_ids
        return list(found)

    def _client_started(self, node: int) -> None:
        """Give up what the former process had taken: Flower never delivers an instruction twice."""
        self._orphans |= {
            ins_id
            for ins_id, message in list(self._pending.items())
            if message.metadata.dst_node_id == node and message.metadata.delivered_at
        }

    def _problem(self, ins_id: str, message: fl.Message, end: float) -> str | None:
        now = time.monotonic()
        if ins_id in self._orphans:
            return RESTARTED
        if now - self.seen.get(message.metadata.dst_node_id, float("-inf")) > SILENCE_SECONDS:
            return SILENT
        return DEADLINE if now > end else None


def _error(message: fl.Message, reason: str) -> fl.Message:
    return fl.Message(fl.Error(fl.ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)
