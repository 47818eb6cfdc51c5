"""The table of what is fuzzed: everything that reads a peer's bytes or another party's file, and what it may raise.

A decoder is a function of bytes.  It returns what it read or raises one of the exceptions that its program's caller
expects; anything else, endless time or memory is a finding.  Where the encoding is canonical, what was read gives the
same bytes again.  ``covers`` names the functions of the product that it goes through: ``test_table.py`` holds the table
complete.
"""

import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.message import DecodeError
from nexus_client import openai_api
from nexus_client.agent_api import PreviewRequest
from nexus_client.clock import ServerClock
from nexus_client.consent import _stored
from nexus_client.data import DataSource, read_rows
from nexus_client.embed import default_base
from nexus_client.policy import read_policy, rewrite_policy
from nexus_client.record import ProtocolRecord
from nexus_client.site import SiteSettings
from nexus_common import address, audit, certs, wire
from nexus_common import flower as fl
from nexus_common.archive import Archive
from nexus_common.authorities import Authorities
from nexus_common.config import parse_toml
from nexus_common.enrolment import Authority, EnrolAnswer, EnrolRequest, Invite
from nexus_common.errors import NexusError, Refusal
from nexus_common.holdings import Holding, pack_holdings, unpack_holdings
from nexus_common.hours import Hours
from nexus_common.layout import Layout
from nexus_common.plan import parse_plan, plan_from_wire
from nexus_common.plan_page import as_html, as_markdown
from nexus_common.plan_words import check_words, plan_words
from nexus_common.recipe import read_recipe
from nexus_common.secagg import codec, keys, shamir
from nexus_common.secagg import plan as protocol
from nexus_common.secagg.client import Client
from nexus_common.secagg.masks import MaskedSum
from nexus_common.secagg.messages import Advert, Adverts
from nexus_common.secagg.server import Server
from nexus_common.versions import StoredAdapter
from nexus_server import admin_api
from nexus_server.enrolment import _checked_key
from nexus_server.gate import Peer, _is_own_reply
from nexus_server.settings import ServerSettingsFile
from nexus_server.vectors import VectorFiles
from pydantic import ValidationError

from tests.fuzz import seeds
from tests.protocol.vectors import offer_of, site_of, vector

from flwr.proto.fleet_pb2 import PullMessagesResponse  # isort: skip  only after our own module

TRANSCRIPT = "transcript-n3"
SLOTS = protocol.decode(bytes.fromhex(vector(TRANSCRIPT)["plan"])).slots


@dataclass(frozen=True)
class Decoder:
    """One line of the table."""

    decode: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]
    refuses: tuple[type[Exception], ...]
    covers: str
    encode: Callable[[Any], bytes] | None = None

    def __call__(self, data: bytes) -> Any:
        """What was read, or None where it was refused as documented."""
        try:
            found = self.decode(data)
        except self.refuses:
            return None
        if self.encode is not None and found is not None:
            assert self.encode(found) == data, "two encodings of one thing"
        return found


def _text(data: bytes) -> str:
    """Any text, lone surrogates included."""
    return data.decode("utf-8", "surrogateescape")


def _file(read: Callable[[Path], Any], name: str = "file") -> Callable[[bytes], Any]:
    """A reader of files as one of bytes."""

    def decode(data: bytes) -> Any:
        with tempfile.TemporaryDirectory(prefix="nxf") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return decode


def _pulled(data: bytes) -> wire.Message | None:
    """What a site makes of a server's answer, up to parts that it would ask for."""
    answer = PullMessagesResponse.FromString(data)
    if not answer.messages_list:
        return None
    outer, _ = fl.received(answer)
    return wire.decode(fl.parcel_of(outer)) if fl.has_all(outer) else None


def _pushed(data: bytes) -> bool:
    """What the door makes of a site's reply, before Flower sees it."""
    return _is_own_reply(fl.PushMessagesRequest.FromString(data), seeds.NODE)


def _whole(data: bytes) -> wire.Message:
    """What both sides make of parts; those that do not match their hashes were refused before."""
    parts = seeds.unframed(data)
    if not parts:
        raise Refusal("malformed")
    contents = {fl.get_object_id(part): part for part in parts}
    metadata = seeds.flower_messages()[0].metadata
    return wire.decode(fl.parcel_of(fl.whole_message(fl.get_object_id(parts[-1]), contents, metadata)))


def _parcel(data: bytes) -> wire.Message:
    """A typed message of a kind and values that JSON can name; texts that begin with b: are bytes."""
    found = json.loads(data)
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise ValueError("not a parcel")
    values = {
        name: value[2:].encode("utf-8", "replace") if isinstance(value, str) and value.startswith("b:") else value
        for name, value in found.items()
    }
    kind, whole = values.pop("kind"), values.pop("vector", None)
    message = wire.decode(fl.Parcel(kind, values, whole))
    wire.purpose(message)
    assert wire.decode(wire.encode(message)) == message
    return message


def _parcels() -> list[bytes]:
    found = []
    for message in seeds.messages():
        parcel = wire.encode(message)
        values: dict[str, Any] = {"kind": parcel.kind, **parcel.fields}
        if parcel.vector is not None:
            values["vector"] = parcel.vector
        texts = {
            name: "b:" + value[:300].decode("latin-1") if isinstance(value, bytes) else value
            for name, value in values.items()
        }
        found.append(json.dumps(texts).encode())
    return found


def _shown(data: bytes) -> Any:
    """A plan as it came, and all that people are shown of it."""
    plan = plan_from_wire(data)
    page = as_markdown(plan, None, None)
    as_html(page, plan.name)
    return plan


class Stages:
    """A party of the specification's transcript at each point of it; built anew once a message was taken."""

    def __init__(self, *, site: bool) -> None:
        self._said, self._site = vector(TRANSCRIPT), site
        self._messages = [
            message
            for message in self._said["messages"]
            if (message["to"] == 0 if site else message["from"] >= 0 or message["to"] == 0)
        ]
        self._kept: dict[int, Client | Server] = {}

    def _at(self, stage: int) -> Client | Server:
        if self._site:
            client = site_of(self._said, self._said["sites"][0])
            for message in self._messages[:stage]:
                client.handle(bytes.fromhex(message["bytes"]), offer_of(message))
            return client
        server = Server(protocol.decode(bytes.fromhex(self._said["plan"])), self._said["epoch"])
        steps: dict[str, Callable[[Any], Any]] = {
            "setup": lambda _: server.start(),
            "adverts": lambda _: server.adverts(),
            "inbox": lambda _: server.inbox(0),
            "round": lambda one: server.round(
                int.from_bytes(bytes.fromhex(one["bytes"])[-34:-32], "little"), bytes.fromhex(one["bytes"])[-32:]
            ),
            "commit-set": lambda _: server.commit(),
            "open": lambda _: server.open(),
        }
        for message in self._messages[:stage]:
            data = bytes.fromhex(message["bytes"])
            if message["from"] >= 0:
                server.receive(data)
            else:
                kind = data.removeprefix(b"nexus-sa/1 ").split(b"\n")[0].decode()
                steps[kind](message)
        return server

    def take(self, data: bytes) -> None:
        """The first byte says where in the transcript the party is; the rest is the message."""
        stage = (data[0] if data else 0) % len(self._messages)
        party = self._kept.get(stage) or self._at(stage)
        self._kept[stage] = party
        party.handle(data[1:]) if isinstance(party, Client) else party.receive(data[1:])
        del self._kept[stage]

    def seeds(self) -> list[bytes]:
        """Every message at its point."""
        return [
            bytes([stage]) + bytes.fromhex(message["bytes"])
            for stage, message in enumerate(self._messages)
            if self._site or message["from"] >= 0
        ]


@functools.cache
def _site_party() -> Stages:
    return Stages(site=True)


@functools.cache
def _server_party() -> Stages:
    return Stages(site=False)


def _certificate(data: bytes) -> Any:
    """A certificate that the other end shows or sends, held against the pinned CA."""
    with certs.foreign():
        found = x509.load_pem_x509_certificate(data)
    authority = x509.load_pem_x509_certificate(seeds.certificates()[2])
    certs.issuer_of(found)
    certs.check_issued_by(found, authority, certs.key_hash(authority), ExtendedKeyUsageOID.CLIENT_AUTH)
    return certs.site_and_identity(found)


def _authorities(data: bytes) -> Any:
    """The CA and those before it, as a server sends them to a site that pins one of them."""
    found = Authorities.read(data)
    found.check_vouched(certs.key_hash(x509.load_pem_x509_certificate(seeds.certificates()[2])))
    return found


def _request(data: bytes) -> Any:
    """An enrolment request whose certificate request is ``data``."""
    return _checked_key(seeds.enrolment().model_copy(update={"csr": data}))


def _bodies(data: bytes) -> None:
    """Every request and answer of a gRPC call."""
    every = [kind for kind in vars(admin_api).values() if isinstance(kind, type) and issubclass(kind, admin_api.Body)]
    for kind in (EnrolRequest, EnrolAnswer, Authority, PreviewRequest, *every):
        try:
            kind.model_validate_json(data)
        except ValidationError:
            continue


def _rows(name: str, **settings: Any) -> Callable[[bytes], Any]:
    tokenizer = default_base() / "tokenizer.json"

    def read(path: Path) -> Any:
        found = read_rows([DataSource(path=path.name, **settings)], path.parent, tokenizer)
        return found.fingerprint

    return _file(read, name)


def _date(data: bytes) -> Any:
    """The Date line of an answer, and the time that the next request is signed with."""
    clock = ServerClock()
    clock.measure(httpx.Response(200, headers={b"date": data}))
    return clock.now().isoformat()


def _policy(path: Path) -> Any:
    """A policy, and one of its values changed with the comments kept."""
    read_policy(path)
    return rewrite_policy(path, lambda policy: {"approved_plans": [*policy.approved_plans, "ef" * 32]}, "a comment")


def _vectors(data: bytes) -> Any:
    """A file of vectors that is named by its content, as a restored backup would be."""
    import hashlib

    with tempfile.TemporaryDirectory(prefix="nxf") as folder:
        name = hashlib.sha256(data).hexdigest()
        (Path(folder) / f"{name}.safetensors").write_bytes(data)
        return VectorFiles(Path(folder)).load(name)


def _audit(path: Path) -> Any:
    """A log is read, verified and gone on with."""
    for check in (lambda: list(itertools.islice(audit.read(path), 1000)), lambda: audit.verify(path)):
        try:
            check()
        except NexusError:
            continue
    audit.AuditLog(path).append("sent", purpose="x")
    return None


def _backup(path: Path) -> int:
    """A backup of somebody's, up to its last byte."""
    found = Archive.read(path, "nexus-server")
    with found.file, tempfile.TemporaryDirectory(prefix="nxf") as folder:
        found.unpack(Path(folder))
        assert {one.relative_to(folder).as_posix() for one in Path(folder).rglob("*") if one.is_file()} == {
            *found.places
        }
    return len(found.places)


def _masked(data: bytes) -> Any:
    plan = protocol.decode(seeds.protocol_plans()[0])
    total = MaskedSum(plan.dim + 1, plan.mod_bits)
    total.add_packed(data)
    return codec.decode(plan, total.packed(), 3)


def _masked_seeds() -> list[bytes]:
    plan = protocol.decode(seeds.protocol_plans()[0])
    total = MaskedSum(plan.dim + 1, plan.mod_bits)
    total.add(np.full(plan.dim + 1, 3, np.int64))
    return [total.packed(), b"\xff" * plan.packed_bytes]


def _box(data: bytes) -> Any:
    public, box = data[:32].ljust(32, b"\0"), data[32:]
    share = shamir.from_bytes(public)
    assert share is None or shamir.to_bytes(share) == public
    return keys.unseal(keys.Exchanger(bytes(range(32))).shared(public), box)


def _boxes() -> list[bytes]:
    public = bytes([9, *bytes(31)])
    return [public + keys.seal(keys.Exchanger(bytes(range(32))).shared(public), b"two shares" * 6)]


def _record(path: Path) -> None:
    record = ProtocolRecord(path)
    try:
        record.draws(b"m")
        record.models_trained(b"p", b"m")
        record.note_trained(b"p", b"m", [b"w"])
    finally:
        record.close()


def _records() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "protocol.sqlite"
        _record(path)
        return [path.read_bytes()]


def _toml(kind: type[Any]) -> Callable[[bytes], Any]:
    return lambda data: parse_toml(kind, data.decode("utf-8", "replace"), "file")


def _invite(data: bytes) -> Any:
    found = Invite.parse(_text(data))
    assert Invite.parse(found.line) == found
    return found


TINY = Layout(0, 0)
RECORD = (NexusError, TypeError)  # SQLite gives values of other types from a page that is damaged within
NEXUS, VALUE, PROTO = (NexusError,), (ValueError,), (Refusal, DecodeError)

DECODERS: dict[str, Decoder] = {
    "server-answer": Decoder(_pulled, seeds.pulled, PROTO, "flower.received flower.parcel_of flower.part_ids"),
    "site-reply": Decoder(_pushed, seeds.pushed, PROTO, "gate._is_own_reply"),
    "message-parts": Decoder(_whole, seeds.parts, (Refusal,), "flower.whole_message"),
    "message-fields": Decoder(_parcel, _parcels, (Refusal, ValueError, RecursionError), "wire.codec.decode"),
    "vector": Decoder(
        lambda data: wire.unpack(data, TINY),
        lambda: [bytes(4 * TINY.dim), np.full(TINY.dim, np.nan, "<f4").tobytes()],
        (Refusal,),
        "wire.weights.unpack",
        encode=wire.pack,
    ),
    "hashes": Decoder(
        wire.unpack_hashes,
        lambda: [b"", bytes(range(96)), bytes(64)],
        (Refusal,),
        "wire.codec.unpack_hashes",
        encode=lambda found: bytes.fromhex("".join(found)),
    ),
    "holdings": Decoder(
        unpack_holdings,
        lambda: [b"", pack_holdings([Holding(3, 0, "ab" * 32), Holding(4, 1, "cd" * 32)])],
        (Refusal,),
        "holdings.unpack_holdings",
        encode=pack_holdings,
    ),
    "plan-on-the-wire": Decoder(
        _shown, seeds.canonical_plans, (Refusal,), "plan.plan_from_wire", encode=lambda plan: plan.canonical
    ),
    "kept-plan": Decoder(_file(_stored, "ab.json"), seeds.canonical_plans, (), "consent._stored"),
    "plan-file": Decoder(
        lambda data: parse_plan(data.decode("utf-8", "replace"), "plan"),
        seeds.plan_files,
        NEXUS,
        "plan.parse_plan config.parse_toml config.parse_table",
    ),
    "backup": Decoder(_file(_backup), seeds.backups, NEXUS, "archive.Archive.read archive.Archive.unpack"),
    "recipe-file": Decoder(_file(read_recipe), seeds.plan_files, NEXUS, "recipe.read_recipe"),
    "protocol-plan": Decoder(
        protocol.decode, seeds.protocol_plans, (Refusal,), "secagg.plan.decode", encode=lambda plan: plan.encoded
    ),
    "protocol-plan-checked": Decoder(
        lambda data: protocol.check(protocol.decode(data)), seeds.protocol_plans, (Refusal,), "secagg.plan._read_string"
    ),
    "advert": Decoder(
        lambda data: Advert.parse(data, SLOTS),
        lambda: seeds.adverts("advert"),
        (Refusal,),
        "secagg.messages.Advert.parse",
        encode=lambda advert: advert.data,
    ),
    "adverts": Decoder(
        lambda data: Adverts.parse(data, SLOTS),
        lambda: seeds.adverts("adverts"),
        (Refusal,),
        "secagg.messages.Adverts.parse",
        encode=lambda adverts: adverts.data,
    ),
    "to-a-site": Decoder(
        lambda data: _site_party().take(data),
        lambda: _site_party().seeds(),
        (Refusal,),
        "secagg.client.Client.handle secagg.epoch.unpack secagg.plan.load",
    ),
    "to-the-server": Decoder(
        lambda data: _server_party().take(data),
        lambda: _server_party().seeds(),
        (Refusal,),
        "secagg.server.Server.receive",
    ),
    "masked-sum": Decoder(_masked, _masked_seeds, (Refusal,), "secagg.masks.unpack_signed secagg.codec.decode"),
    "sealed-share": Decoder(_box, _boxes, (Refusal,), "secagg.shamir.from_bytes secagg.keys.unseal"),
    "certificate": Decoder(_certificate, lambda: list(seeds.certificates()), (Refusal, ValueError), "certs"),
    "authorities": Decoder(
        _authorities, lambda: [seeds.authorities()], (Refusal, ValueError), "authorities.Authorities.read"
    ),
    "client-certificate": Decoder(
        Peer.of,
        lambda: [x509.load_pem_x509_certificate(one).public_bytes(certs.Encoding.DER) for one in seeds.certificates()],
        (ValueError,),
        "gate.Peer.of",
    ),
    "certificate-request": Decoder(_request, lambda: [seeds.enrolment().csr], (Refusal,), "enrolment._checked_key"),
    "invitation": Decoder(_invite, seeds.invitations, NEXUS, "enrolment.Invite.parse"),
    "grpc-bodies": Decoder(_bodies, seeds.bodies, (), "rpc"),
    "date-header": Decoder(
        _date,
        lambda: [b"Thu, 26 Nov 2026 11:00:00 GMT", b"Fri, 31 Dec 9999 23:59:59 -0100", b"Fri, 1 Jan 100 0:0:0 -0000"],
        (),
        "clock.seconds_ahead",
    ),
    "hours": Decoder(
        lambda data: Hours.parse(_text(data)), lambda: [b"20:00-06:00", b"00:00-24:00"], VALUE, "hours.Hours.parse"
    ),
    "address": Decoder(
        lambda data: address.split_address(_text(data)),
        lambda: [b"127.0.0.1:8443", b"[::1]:1"],
        VALUE,
        "address.split_address",
    ),
    "proxy": Decoder(
        lambda data: address.split_proxy(_text(data)), lambda: [b"http://a.b:3128/"], VALUE, "address.split_proxy"
    ),
    "embeddings-request": Decoder(
        lambda data: openai_api.read_embeddings(data).texts,
        lambda: [
            b'{"model":"nexus","input":["chest pain","x"],"encoding_format":"base64"}',
            b'{"model":"a","input":"b"}',
        ],
        (openai_api.ApiError,),
        "openai_api.read_embeddings",
    ),
    "adapt-request": Decoder(
        lambda data: openai_api.read_adapt(data).vectors,
        lambda: [json.dumps({"model": "nexus", "input": [[0.0] * 383 + [one]]}).encode() for one in (1, 10**400, "1")],
        (openai_api.ApiError,),
        "openai_api.read_adapt",
    ),
    "words": Decoder(
        lambda data: check_words(_text(data), bytes(32)),
        lambda: [" ".join(plan_words(bytes(32))).encode()],
        NEXUS,
        "plan_words.check_words",
    ),
    "site.toml": Decoder(_toml(SiteSettings), lambda: [seeds.SITE_TOML], NEXUS, "config.read_toml"),
    "server.toml": Decoder(_toml(ServerSettingsFile), lambda: [seeds.SERVER_TOML], NEXUS, "settings.read_settings"),
    "policy.toml": Decoder(
        _file(_policy), lambda: [seeds.POLICY_TOML], NEXUS, "policy.read_policy policy.rewrite_policy"
    ),
    "adapter-file": Decoder(
        lambda data: _file(StoredAdapter.read)(data + bytes(4 * TINY.dim)),
        seeds.adapters,
        NEXUS,
        "versions.StoredAdapter.read rebuild.read_version",
    ),
    "vector-file": Decoder(_vectors, seeds.vector_files, NEXUS, "vectors.VectorFiles.load"),
    "audit-log": Decoder(_file(_audit), seeds.audit_logs, NEXUS, "audit.read audit._parse"),
    "protocol-record": Decoder(_file(_record), _records, RECORD, "record"),
    "csv": Decoder(
        _rows("faq.csv", group="group"),
        lambda: [seeds.CSV],
        NEXUS,
        "data.read_rows tables.read_table tables.read_text rows.decoded data._read",
    ),
    "tsv-cp1252": Decoder(_rows("faq.tsv", encoding="cp1252"), lambda: [seeds.CSV.replace(b";", b"\t")], NEXUS, ""),
    "jsonl": Decoder(_rows("faq.jsonl"), lambda: [seeds.JSONL], NEXUS, ""),
    "parquet": Decoder(_rows("faq.parquet"), seeds.parquets, NEXUS, ""),
    "markdown": Decoder(_rows("handbook.md"), lambda: [seeds.MARKDOWN], NEXUS, "documents.read_documents"),
    "plain-text": Decoder(_rows("handbook.txt"), lambda: [seeds.MARKDOWN], NEXUS, ""),
}
assert all(field.name for field in fields(Decoder))
