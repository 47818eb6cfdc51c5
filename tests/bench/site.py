"""Site processes for benchmarks: the product's connection, audit log, masking and record; no training.

``python -m tests.bench.site ADDRESS PLAN KEYS...``: a site for each folder of keys, all in one process.  A round under
no plan's hash is the control of ``tests.bench.rounds``: its update goes out as plain float32.
"""

import sys
import threading
from pathlib import Path

from nexus_client.link import Link
from nexus_client.record import ProtocolRecord
from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.journal import Journal
from nexus_common.plan import Plan, plan_from_wire

from tests.federation.sim import SimSite

PLAIN = bytes(32)


def serve(address: str, plan: Plan, keys: Path) -> None:
    """One site, until the process is killed."""
    state = keys.parent
    identity = certs.load_identity(keys / "identity.key")
    site = SimSite(state.parent.name, plan, identity, ProtocolRecord(state / "protocol.sqlite"))

    def handle(message: wire.Message) -> wire.Message:
        if isinstance(message, wire.TrainRound) and message.run == PLAIN:
            return wire.Masked(wire.pack(site.update(wire.unpack(message.vector, plan.adapter.layout))))
        return site(message)

    Link(address, keys, handle, Journal(AuditLog(state / "audit.jsonl"))).run()


def main() -> None:
    """Serve until killed."""
    address, plan = sys.argv[1], plan_from_wire(Path(sys.argv[2]).read_bytes())
    for keys in sys.argv[4:]:
        threading.Thread(target=serve, args=(address, plan, Path(keys)), daemon=True).start()
    serve(address, plan, Path(sys.argv[3]))  # here: a main thread that has ended would take thread pools with it


if __name__ == "__main__":
    main()
