"""A site process for ``tests.bench.rounds``: the product's connection, audit log, masking and record; no training.

``python -m tests.bench.site SITE ADDRESS KEYS PLAN``.  A round under no plan's hash is the control: its update goes out
as plain float32.
"""

import sys
from pathlib import Path

from nexus_client.link import Link
from nexus_client.record import ProtocolRecord
from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.journal import Journal
from nexus_common.plan import plan_from_wire

from tests.federation.sim import SimSite

PLAIN = bytes(32)


def main() -> None:
    """Serve until killed."""
    name, address, keys, plan = (
        sys.argv[1],
        sys.argv[2],
        Path(sys.argv[3]),
        plan_from_wire(Path(sys.argv[4]).read_bytes()),
    )
    state = keys.parent
    site = SimSite(name, plan, certs.load_identity(keys / "identity.key"), ProtocolRecord(state / "protocol.sqlite"))

    def handle(message: wire.Message) -> wire.Message:
        if isinstance(message, wire.TrainRound) and message.run == PLAIN:
            return wire.Masked(wire.pack(site.update(wire.unpack(message.vector, plan.adapter.layout))))
        return site(message)

    Link(address, keys, handle, Journal(AuditLog(state / "audit.jsonl"))).run()


if __name__ == "__main__":
    main()
