"""Many simulated sites in one process over a Flower Grid with the real wire codec; no network."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.masking import Made, Masking, Records, weights_names
from nexus_common import certs, wire
from nexus_common import flower as fl
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.holdings import Holding, pack_holdings
from nexus_common.journal import Journal
from nexus_common.layout import Layout
from nexus_common.plan import Plan, plan_from_wire
from nexus_common.secagg.keys import signed
from nexus_common.secagg.plan import ProtocolPlan
from nexus_common.stages import Stage
from nexus_common.versions import trained_from, vector_hash
from nexus_server import flower as fs
from nexus_server.exchange import DEADLINE, SILENT, GridExchange

from tests.plans import identity_of
from tests.protocol.vectors import MemoryRecord

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
            return fl.Message(fl.Error(fl.ErrorCode.NODE_UNAVAILABLE, SILENT), reply_to=message)
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


class MemoryRecords:
    """A site's records, as durable as the test."""

    def __init__(self) -> None:
        self.opened = set[bytes]()
        self.plans: dict[bytes, MemoryRecord] = {}

    def under(self, plan: Plan, protocol: ProtocolPlan) -> MemoryRecord:
        """The record of one protocol plan."""
        found = self.plans.setdefault(protocol.hash, MemoryRecord())
        found.opened = self.opened
        return found


class SimSite:
    """A site that 'trains' by moving a fixed way towards its own target vector, with the real secure aggregation."""

    def __init__(
        self, name: str, plan: Plan, key: Ed25519PrivateKey | None = None, records: Records | None = None
    ) -> None:
        self.name, self.plan = name, plan
        self.key = key or identity_of(name)
        self.identity = certs.raw_identity(self.key)
        self.target = (
            np.random.default_rng(list(name.encode())).normal(size=plan.adapter.layout.dim).astype("f4") * 0.01
        )
        self.standing = wire.APPROVED
        self.figures = {"loss": 1.0, "score": 0.5, "questions": 100.0, "vote": 1.0}
        self.received: list[int] = []
        self.had: list[Holding] = []
        self.kept: dict[str, bytes] = {}  # versions by their hash
        self.trained = 0
        self.records = MemoryRecords() if records is None else records
        self.restart()

    def restart(self) -> None:
        """Forget what lives in memory only."""
        self.prepared, self.masking = False, Masking(self.name, self.key, self.records)

    def __call__(self, message: wire.Message) -> wire.Message:
        """Answer as ``nexus_client.rounds`` does."""
        if isinstance(message, wire.Propose):
            asked = plan_from_wire(message.plan).hash
            standing = self.standing if asked == self.plan.hash else wire.PENDING
            return wire.signed_standing(self.key, asked, self.name, standing, "")
        if isinstance(message, wire.Prepare):
            if plan_from_wire(message.plan) != self.plan:
                raise Refusal("wrong-context", "a simulated site knows one plan")
            self.masking.take_up(self.plan)
            self.prepared = True
            return wire.Readiness(wire.READY)
        if isinstance(message, wire.Recall):
            return self.recall(message)
        if isinstance(message, wire.Deliver):
            self.received.append(message.round)
            self.have(message.round, message.stage, message.vector)
            return wire.Received(wire.model_hash(self.plan.stages[message.stage], message.vector))
        if isinstance(message, wire.Ask):
            return self.say(message)
        assert isinstance(message, wire.TrainRound)
        if not self.prepared:
            raise Refusal("wrong-context", "a process that has just started knows no run")
        form, made = self.plan.stages[message.stage], self.masking.made
        if message.use:
            control = form.control(wire.unpack(message.vector, form))
            self.have(message.round, self.plan.stages.index(form.alone), wire.pack(control))
        begins = trained_from(self.plan, message.round, wire.unpack(message.vector, form))
        model = wire.model_hash(form, wire.pack(begins), close=bool(message.close))
        if made is None or made.model != model:
            self.trained += not message.close
            update = np.zeros(form.dim, np.float32) if message.close else self.updates(form, begins)
            figures = [self.report(arm, weights) for arm, weights in zip(form.arms, form.split(begins), strict=True)]
            weights = weights_names(self.plan, message.stage, begins)
            self.masking.made = Made(model, message.stage, weights, update, figures)
        if message.close:
            self.received.append(message.round)
        return wire.Trained(model)

    def have(self, number: int, stage: int, vector: bytes) -> None:
        """A version came; it calls back all above it."""
        new = Holding(number, stage, vector_hash(vector))
        self.had = [*(one for one in self.had if one.round < number), new]
        self.kept[new.digest] = vector

    def recall(self, message: wire.Recall) -> wire.Message:
        """What a server that was restored hears."""
        if not message.wanted:
            return wire.Holds(pack_holdings(self.had))
        if message.wanted.hex() not in self.kept:
            raise Refusal("wrong-context")
        return wire.Given(self.kept[message.wanted.hex()])

    def say(self, message: wire.Ask) -> wire.Message:
        """The reply to a message of the protocol."""
        return self.masking.answer(message, 0)

    def updates(self, form: Stage, begins: np.ndarray) -> np.ndarray:
        """Each arm's update."""
        return np.concatenate([self.update(arm) for arm in form.split(begins)])

    def update(self, vector: np.ndarray) -> np.ndarray:
        """Half the way to the target; in a larger layout that is as long as it has to be."""
        return ((np.resize(self.target, len(vector)) - vector) / 2).astype(np.float32)

    def report(self, layout: Layout, weights: np.ndarray) -> dict[str, float]:
        """What the site says of an adapter."""
        return self.figures


class Liar(SimSite):
    """A site whose part in a round is spoiled by ``spoil``."""

    def __init__(self, name: str, plan: Plan, spoil: str, key: Ed25519PrivateKey | None = None) -> None:
        super().__init__(name, plan, key)
        self.spoil = spoil

    def __call__(self, message: wire.Message) -> wire.Message:
        made = super().__call__(message)
        if isinstance(made, wire.Trained):
            return {
                "readiness": wire.Readiness(wire.READY),
                "refused": wire.Refused("not-ready"),
                "other-model": wire.Trained(bytes(32)),
            }.get(self.spoil, made)
        if not isinstance(made, wire.Masked):
            return made
        data = made.vector
        body = {
            "short": data[:-67],
            "long": data[:-64] + b"123",
            "other-name": data[:49] + bytes([0]) + data[50:-64],
            "other-slot": data[:20] + bytes([data[20] ^ 1]) + data[21:-64],
        }.get(self.spoil, data[:-64])
        return wire.Masked(body + bytes(64) if self.spoil == "unsigned" else signed(self.key, body))
