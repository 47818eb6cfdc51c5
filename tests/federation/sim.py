"""Many simulated sites in one process over a Flower Grid with the real wire codec; no network."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import certs, wire
from nexus_common import flower as fl
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.journal import Journal
from nexus_common.plan import Plan, plan_from_wire
from nexus_server import flower as fs
from nexus_server.exchange import DEADLINE, GridExchange

from tests.plans import identity_of

Handle = Callable[[wire.Message], wire.Message]


def over_the_wire(message: fl.Message) -> fl.Message:
    """Serialise and parse as a real round trip would, so that tests catch what does not survive it."""
    with fl.no_object_id_recompute():
        fl.name_by_content(message)
        parts = {part_id: part.deflate() for part_id, part in fl.get_all_nested_objects(message).items()}
    inner = fl.inflate_object_from_contents(message.metadata.message_id, parts)
    if inner.has_error():
        return fl.make_message(metadata=message.metadata, error=inner.error)
    return fl.make_message(metadata=message.metadata, content=inner.content)


class SimGrid(fs.Grid):
    """Runs each instruction at once, in order; a site in ``silent`` is away, one in ``slow`` misses every deadline."""

    def __init__(self, sites: dict[str, Handle]) -> None:
        self.nodes = {site: number for number, site in enumerate(sites, 2)}
        self.handle = {self.nodes[site]: handle for site, handle in sites.items()}
        self.silent: set[str] = set()
        self.slow: set[str] = set()
        self.bytes_up: collections.Counter[str] = collections.Counter()
        identity = fl.TaskIdentity
        identity.run_id, identity.task_id, identity.node_id = 1, 1, fl.SUPERLINK_NODE_ID

    def set_run(self, run: Any) -> None:
        """Nothing to set."""

    run = property(lambda self: None)

    def create_message(self, *_: Any, **__: Any) -> fl.Message:
        """Not used."""
        raise RuntimeError("use flwr.app.Message")

    def get_node_ids(self) -> list[int]:
        """All but the silent."""
        return [node for site, node in self.nodes.items() if site not in self.silent]

    def push_messages(self, messages: Iterable[fl.Message]) -> list[str]:
        """Not used: the simulation answers at once."""
        raise RuntimeError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> list[fl.Message]:
        """Not used: the simulation answers at once."""
        raise RuntimeError("use send_and_receive")

    def send_and_receive(self, messages: Iterable[fl.Message], *, timeout: float | None = None) -> list[fl.Message]:
        """One answer for each."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: fl.Message) -> fl.Message:
        node = message.metadata.dst_node_id
        if node not in self.get_node_ids():
            return fl.Message(fl.Error(fl.ErrorCode.NODE_UNAVAILABLE, "the client fell silent"), reply_to=message)
        if node in {self.nodes[site] for site in self.slow} and fl.parcel_of(message).kind == "train":
            return fl.Message(fl.Error(fl.ErrorCode.NODE_UNAVAILABLE, DEADLINE), reply_to=message)
        instruction = over_the_wire(message)
        try:
            made = self.handle[node](wire.decode(fl.parcel_of(instruction)))
        except Refusal as refusal:
            made = wire.Refused(refusal.code)
        reply = over_the_wire(fl.reply(wire.encode(made), instruction))
        self.bytes_up["all"] += sum(len(value) for value in (getattr(made, "vector", b""),))
        return reply

    def exchange(self, audit: AuditLog) -> GridExchange:
        """What the round logic sees."""
        return GridExchange(self, lambda: self.nodes, self.bytes_up.total, Journal(audit))


class SimSite:
    """A site that 'trains' by moving a fixed way towards its own target vector."""

    def __init__(self, name: str, plan: Plan, key: Ed25519PrivateKey | None = None) -> None:
        self.name, self.plan = name, plan
        self.key = key or identity_of(name)
        self.identity = certs.raw_identity(self.key)
        self.target = (
            np.random.default_rng(list(name.encode())).normal(size=plan.adapter.layout.dim).astype("f4") * 0.01
        )
        self.standing = wire.APPROVED
        self.received: list[int] = []
        self.trained = 0

    def __call__(self, message: wire.Message) -> wire.Message:
        """Answer as ``nexus_client.rounds`` does."""
        layout = self.plan.adapter.layout
        if isinstance(message, wire.Propose):
            asked = plan_from_wire(message.plan).hash
            standing = self.standing if asked == self.plan.hash else wire.PENDING
            return wire.signed_standing(self.key, asked, self.name, standing, "")
        if isinstance(message, wire.Prepare):
            if plan_from_wire(message.plan) != self.plan:
                raise Refusal("wrong-context", "a simulated site knows one plan")
            return wire.Readiness(wire.READY)
        if isinstance(message, wire.Deliver):
            self.received.append(message.round)
            return wire.Received(wire.model_hash(message.run, layout, message.round, message.vector))
        assert isinstance(message, wire.TrainRound)
        self.trained += 1
        update = self.update(wire.unpack(message.vector, layout))
        model = wire.model_hash(message.run, layout, message.round, message.vector)
        return wire.signed_update(self.key, message.run, message.round, self.name, model, wire.pack(update))

    def update(self, vector: np.ndarray) -> np.ndarray:
        """Half the way to the target."""
        return ((self.target - vector) / 2).astype(np.float32)


class Liar(SimSite):
    """A site whose update is spoiled by ``spoil``."""

    def __init__(self, name: str, plan: Plan, spoil: str, key: Ed25519PrivateKey | None = None) -> None:
        super().__init__(name, plan, key)
        self.spoil = spoil

    def __call__(self, message: wire.Message) -> wire.Message:
        if not isinstance(message, wire.TrainRound):
            return super().__call__(message)
        layout = self.plan.adapter.layout
        model = wire.model_hash(message.run, layout, message.round, message.vector)
        data = wire.pack(self.update(wire.unpack(message.vector, layout)))
        if self.spoil == "not-finite":
            data = data[:-4] + np.float32("nan").tobytes()
        elif self.spoil == "short":
            data = data[:-4]
        elif self.spoil == "long":
            data = data + b"1234"
        elif self.spoil == "norm":
            data = wire.pack(np.full(layout.dim, 1e6, np.float32))
        name = "hospital-a" if self.spoil == "other-name" else self.name
        number = message.round + 1 if self.spoil == "other-round" else message.round
        made = wire.signed_update(self.key, message.run, number, name, model, data)
        return {
            "readiness": wire.Readiness(wire.READY),
            "refused": wire.Refused("not-ready"),
            "other-model": wire.Update(bytes(32), made.signature, data),
        }.get(self.spoil, made)
