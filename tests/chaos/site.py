"""A site process for chaos: the product's connection, audit log, masking and record; trains trivially, keeps notes.

``python -m tests.chaos.site SITE ADDRESS KEYS PLAN AHEAD``; its clock is ahead by so many seconds.  Its notes, beside
the plan, say which models it helped to open, and what it replied in which slot: lines that outlive it, so that a slot
used twice or a model opened twice shows.
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from nexus_client.link import Link
from nexus_client.record import PlanRecord, ProtocolRecord
from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.journal import Journal
from nexus_common.layout import Layout
from nexus_common.plan import plan_from_wire
from nexus_common.secagg.labels import label_of

from tests.federation.sim import SimSite
from tests.processes.skewed_agent import skew


class Grower(SimSite):
    """Finds dendrites good."""

    def report(self, layout: Layout, weights: np.ndarray) -> dict[str, float]:
        """What an adapter is worth."""
        return self.figures | {"score": 0.5 + 0.1 * layout.projection}


def main() -> None:
    """Serve until killed."""
    name, address, keys, path = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    skew(float(sys.argv[5]))
    plan, state = plan_from_wire(path.read_bytes()), keys.parent
    notes = os.open(path.parent / f"{name}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    note_opened = PlanRecord.note_opened

    def noted(record: PlanRecord, *names: bytes) -> None:
        kinds = ("opened", *["weights"] * (len(names) - 1))
        os.write(notes, "".join(f"{kind} {name.hex()}\n" for kind, name in zip(kinds, names, strict=True)).encode())
        note_opened(record, *names)

    PlanRecord.note_opened = noted  # type: ignore[method-assign]
    record = ProtocolRecord(state / "protocol.sqlite")
    site = Grower(name, plan, certs.load_identity(keys / "identity.key"), record)

    def handle(message: wire.Message) -> wire.Message:
        answer = site(message)
        if isinstance(message, wire.Ask) and isinstance(answer, wire.Masked) and label_of(message.data) == "round":
            slot, reply = message.data[:-32].hex(), hashlib.sha256(answer.vector).hexdigest()
            os.write(notes, f"input {slot} {reply}\n".encode())
        return answer

    Link(address, keys, handle, Journal(AuditLog(state / "audit.jsonl"))).run()


if __name__ == "__main__":
    main()
