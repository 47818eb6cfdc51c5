"""Valid encodings of everything that is fuzzed: what a mutation begins at.  Made once a process."""

import functools
import io
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from nexus_common import certs, wire
from nexus_common import flower as fl
from nexus_common.archive import Contents, pack
from nexus_common.audit import AuditLog
from nexus_common.authorities import Authorities
from nexus_common.enrolment import EnrolRequest, Invite, request_bytes
from nexus_common.holdings import Holding, pack_holdings
from nexus_common.layout import Layout
from nexus_common.plan import Plan
from nexus_common.recipe import Recipe
from nexus_common.secagg.labels import label
from nexus_common.versions import StoredAdapter
from nexus_server.planning import plan_toml
from pyarrow import parquet

from tests.plans import identity_of, make_plan, plan_fields
from tests.protocol.vectors import FOLDER, vector

from flwr.proto.fleet_pb2 import PullMessagesResponse  # isort: skip  only after our own module

SITES = ("bank-a", "hospital-a", "hospital-b")
NODE, RUN = 5, 1


@functools.cache
def plans() -> tuple[Plan, ...]:
    """Plans with every table in them."""
    privacy = {"noise": 1.0, "sampling": 0.5, "honest": 3}
    origin = {"plan": "ab" * 32, "version": 3, "vector": "cd" * 32}
    return (
        make_plan(SITES),
        make_plan(SITES, origin=origin, hours_utc="20:00-06:00", start="quorum", min_cohort=3),
        make_plan(SITES, privacy=privacy, aggregation={"mod_bits": 32}),
        make_plan([*SITES, *"abcdef"], server={"optimiser": "fedadam"}, adapter={"projection_dendrites": 2}),
    )


def canonical_plans() -> list[bytes]:
    """As they travel."""
    return [plan.canonical for plan in plans()]


def plan_files() -> list[bytes]:
    """As people write them."""
    return [plan_toml(plan).encode() for plan in plans()]


@functools.cache
def messages() -> tuple[wire.Message, ...]:
    """One of every kind, and those that carry secure aggregation."""
    plan, hashed = plans()[0], bytes(range(32))
    said = [bytes.fromhex(message["bytes"]) for message in vector("transcript-n3")["messages"][:12]]
    return (
        wire.Propose(plan.canonical),
        wire.signed_standing(identity_of(SITES[0]), plan.hash, SITES[0], "pending", "too-few-rows"),
        wire.Prepare(plan.canonical),
        wire.Readiness("preparing"),
        wire.TrainRound(hashed, 3, 0, 1, 0, bytes(64)),
        wire.Trained(hashed),
        *(wire.Ask(hashed, 3, b"", data) for data in said),
        *(wire.Say(data) for data in said),
        wire.Masked(b"\x01" * 300),
        wire.Deliver(hashed, 3, 0, hashed + bytes(32), bytes(64)),
        wire.Received(hashed),
        wire.Recall(hashed, b""),
        wire.Recall(hashed, hashed),
        wire.Holds(pack_holdings([Holding(3, 0, "ab" * 32), Holding(4, 1, "cd" * 32)])),
        wire.Given(bytes(64)),
        wire.Certify(certificates()[0], authorities()),
        wire.Certified(hashed),
        wire.Refused("not-ready"),
    )


@functools.cache
def flower_messages() -> tuple[fl.Message, ...]:
    """The same as Flower's."""
    mine = fl.TaskIdentity
    mine.run_id, mine.task_id, mine.node_id = RUN, 1, fl.SUPERLINK_NODE_ID
    question = fl.instruction(wire.encode(messages()[0]), NODE, 60)
    to_sites = (wire.Propose, wire.Prepare, wire.TrainRound, wire.Ask, wire.Deliver, wire.Recall, wire.Certify)
    found = []
    for message in messages():
        parcel = wire.encode(message)
        found.append(fl.instruction(parcel, NODE, 60) if isinstance(message, to_sites) else fl.reply(parcel, question))
        fl.name_by_content(found[-1])
    return tuple(found)


def pulled() -> list[bytes]:
    """Answers of the server, each with a message."""
    return [
        PullMessagesResponse(
            messages_list=[fl.message_to_proto(message)], message_object_trees=[fl.get_object_tree(message)]
        ).SerializeToString()
        for message in flower_messages()
    ]


def pushed() -> list[bytes]:
    """Requests of a site, each with a reply."""
    return [
        fl.PushMessagesRequest(
            node=fl.Node(node_id=NODE),
            messages_list=[fl.message_to_proto(message)],
            message_object_trees=[fl.get_object_tree(message)],
        ).SerializeToString()
        for message in flower_messages()
    ]


def framed(parts: list[bytes]) -> bytes:
    """Parts of a message in one piece."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unframed(data: bytes) -> list[bytes]:
    """The inverse; takes anything."""
    found, at = [], 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def parts() -> list[bytes]:
    """Messages in parts, the whole one last."""
    found = []
    with fl.no_object_id_recompute():
        for message in flower_messages():
            objects = fl.get_all_nested_objects(message)
            last = objects.pop(message.object_id)
            found.append(framed([*(one.deflate() for one in objects.values()), last.deflate()]))
    return found


def said(*, to_sites: bool) -> list[bytes]:
    """All messages of the specification's transcripts and refusals that go one way."""
    found: list[bytes] = []
    for path in sorted(FOLDER.glob("transcript-n3*.json")):
        found += [
            bytes.fromhex(one["bytes"])
            for one in json.loads(path.read_text())["messages"]
            if (one["from"] < 0) == to_sites
        ]
    return list(dict.fromkeys(found))


def adverts(kind: str) -> list[bytes]:
    """The adverts of single sites, or set-ups of all, of the specification's first transcript."""
    return [data for data in said(to_sites=kind == "adverts") if data.startswith(label(kind))]


def protocol_plans() -> list[bytes]:
    """Of the vectors, good and refused, and derived ones."""
    vectors = [bytes.fromhex(one["bytes"]) for one in vector("plan")["plans"]]
    return vectors + [derived.encoded for plan in plans() for derived in plan.protocol_plans]


@functools.cache
def keys() -> tuple[certs.TransportKey, certs.TransportKey]:
    """The CA's key and a site's."""
    return certs.new_transport_key(), certs.new_transport_key()


@functools.cache
def certificates() -> tuple[bytes, bytes, bytes]:
    """PEM: a site's, the server's, the CA's."""
    import datetime as dt

    (ca_key, key), now = keys(), dt.datetime.now(dt.UTC)
    authority = certs.make_authority(ca_key, "demo", now)
    site = certs.issue_site(ca_key, authority, key.public_key(), SITES[0], bytes(range(32)), now)
    server = certs.issue_server(ca_key, authority, key.public_key(), ["127.0.0.1", "server.example"], now)
    return certs.pem(site), certs.pem(server), certs.pem(authority)


@functools.cache
def authorities() -> bytes:
    """PEM: the CA after two rotations, with those before it."""
    import datetime as dt

    from cryptography import x509

    chain, key = Authorities((x509.load_pem_x509_certificate(certificates()[2]),)), keys()[0]
    for fresh in (certs.new_transport_key(), certs.new_transport_key()):
        chain, key = chain.rotated(key, fresh, dt.datetime.now(dt.UTC)), fresh
    return chain.pem


@functools.cache
def enrolment() -> EnrolRequest:
    """A request to enrol."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SITES[0])])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(keys()[1], hashes.SHA384())
    der, secret, identity = csr.public_bytes(Encoding.DER), bytes(16), identity_of(SITES[0])
    signature = identity.sign(request_bytes(SITES[0], secret, der))
    return EnrolRequest(
        site=SITES[0], secret=secret, csr=der, identity=certs.raw_identity(identity), signature=signature
    )


def invitations() -> list[bytes]:
    """Lines to paste."""
    return [Invite(host, SITES[0], bytes(range(32)), bytes(16)).line.encode() for host in ("a.example:1", "[::1]:8443")]


def bodies() -> list[bytes]:
    """JSON of the calls over gRPC."""
    few: list[dict[str, Any]] = [
        json.loads(enrolment().model_dump_json()),
        {"certificate": "x", "server": "a:1", "refused": "invite-used", "expired": 1.5, "contact": "Kim"},
        {"text": plan_files()[0].decode(), "where": "first.toml"},
        {"name": "next", "purpose": "p", "rounds": 3, "add": ["bank-a"], "version": 2, "recipe": "[local]\nsteps = 3"},
        {"run": None, "first": 1, "last": 4},
        {"rows": 3},
        plan_fields(SITES),
    ]
    return [json.dumps(one).encode() for one in few]


SITE_TOML = b"""site = "bank-a"
server = "127.0.0.1:8443"
cpu_threads = 2
holdout_share = 0.25
proxy = "http://proxy.example:3128"
[[data]]
path = "faq.csv"
columns = { query = "Frage" }
score_max = 5.0
group = "patient"
encoding = "cp1252"
delimiter = ";"
"""
SERVER_TOML = b"""name = "demo"
contact = "Kim"
address = "127.0.0.1:8443"
listen = "127.0.0.1:8443"
enrol_address = "127.0.0.1:8444"
enrol_listen = "127.0.0.1:8444"
"""
POLICY_TOML = (
    b'# ours\nparticipation = "active"  # yes\napproved_plans = [\n  \'' + b"ab" * 32 + b"', # the first\n]\n"
    b'min_cohort = 3\nmax_clip_norm = 20.0\nallowed_hours = "20:00-06:00"\naccept_no_record_privacy = true\n'
)
CSV = b'query;passage;group\n"what is; this";"a ""thing""\n of two lines";1\nwhere,is it;in room 7;2\n'
JSONL = (
    b'{"query": "what is this", "passage": "a thing", "n": [1, {"a": null}]}\n{"a": "x", "b": "y", "score": 0.5}\n'
    b'{"text": "hello \\u00e9", "label": 7}\n'
)
MARKDOWN = b"---\ntitle: x\n---\n# Leave\n\nIntro *text* with `code` and [a](b).\n\n## Asking for leave\n\n" + (
    b"| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n- one\n  - two\n\n<!-- no -->\n\n```\nfence\n```\n\nText. " * 3
)


def parquets() -> list[bytes]:
    """Files of each kind of row."""
    tables = [
        {"query": ["what is this", "where"], "passage": ["a thing", None]},
        {"a": ["x", "y"], "b": ["y", "z"], "score": [0.5, 1.0]},
        {"text": ["hello", "bye"], "label": [1, 2]},
    ]
    found = []
    for table, packed in zip(tables, ("snappy", "gzip", "none"), strict=True):
        file = io.BytesIO()
        parquet.write_table(pa.table(table), file, compression=packed)
        found.append(file.getvalue())
    return found


def _written(write: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


@functools.cache
def adapters() -> list[bytes]:
    """The headers of versions and own adapters on disk; their numbers follow as zeros."""
    whole = [(recipe, Layout(0, 0)) for recipe in (plans()[0], Recipe())]
    vectors = [np.zeros(layout.dim, np.float32) for _, layout in whole]
    stored = [StoredAdapter(one, 3, v, layout, "x") for (one, layout), v in zip(whole, vectors, strict=True)]
    files = [_written(one.write) for one in stored]
    return [file[: -4 * layout.dim] for file, (_, layout) in zip(files, whole, strict=True)]


def vector_files() -> list[bytes]:
    """A set of short vectors."""
    from safetensors.numpy import save

    return [save({"m": np.arange(5.0), "v": np.ones((2, 3), np.float32)})]


def audit_logs() -> list[bytes]:
    """A log of a few lines."""

    def write(path: Path) -> None:
        log = AuditLog(path)
        log.append("sent", purpose="say", bytes=7, to=["a", "b"], share=0.5)
        log.append("refused", code="malformed", text="\u00e9\ud800")

    whole = _written(write)
    return [whole, whole[:-20]]


@functools.cache
def backups() -> list[bytes]:
    """A backup with two files."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "a").write_bytes(b"settings")
        (here / "b").write_bytes(bytes(700))
        listed = Contents(kind="nexus-server", of="x", made=1.0, version="1", schema_number=1, files={})
        out = io.BytesIO()
        pack(out, listed, {"server.toml": here / "a", "state/registry.sqlite": here / "b"})
        return [out.getvalue()]
