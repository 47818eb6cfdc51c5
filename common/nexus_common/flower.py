"""The shared half of what touches Flower: its off switches, its private names, and our parcels as its messages.

Checked against flwr 1.41.0, pinned exactly; ``tests/federation/test_flower_contract.py`` names every assumption.  It
must be imported before anything from flwr, because the off switches are read at import.
"""

import itertools
import json
import logging
import os
import sys
from typing import Any, Final

if "flwr" in sys.modules:
    raise ImportError("import nexus_common.flower before anything from flwr: it sets the off switches")
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    FLWR_TRACING_ENABLED="0",
)

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.task_identity import TaskIdentity

from nexus_common.errors import Refusal
from nexus_common.wire import Parcel

__all__ = [
    "NOOP_FLWR_AID",
    "SUPERLINK_NODE_ID",
    "ActivateNodeRequest",
    "ConfirmMessageReceivedRequest",
    "Context",
    "DeactivateNodeRequest",
    "Error",
    "ErrorCode",
    "Message",
    "Node",
    "ObjectPullError",
    "ObjectPushError",
    "PullMessagesRequest",
    "PullObjectRequest",
    "PushMessagesRequest",
    "PushObjectRequest",
    "RecordDict",
    "SendNodeHeartbeatRequest",
    "SubStatus",
    "TaskIdentity",
    "get_all_nested_objects",
    "get_object_id",
    "get_object_tree",
    "has_all",
    "inflate_object_from_contents",
    "instruction",
    "iterate_object_tree",
    "make_message",
    "make_pull_object_fn_protobuf",
    "make_push_object_fn_protobuf",
    "message_from_proto",
    "message_to_proto",
    "name_by_content",
    "no_object_id_recompute",
    "parcel_of",
    "part_ids",
    "pull_objects",
    "push_objects",
    "received",
    "reply",
    "sent_ahead",
    "whole_message",
]

_log = logging.getLogger("flwr")
_log.setLevel(logging.WARNING)  # its INFO lines carry one entry per message
_log.handlers.clear()  # our program's handlers take its lines, and bound them
_log.propagate = True

MAX_BODY_BYTES: Final = 6 << 20  # one 5 MiB Flower chunk and its envelope
MAX_SMALL_BODY_BYTES: Final = 64 << 10  # whatever carries no part
MAX_PARTS: Final = 8  # objects in one message: five of structure, the rest chunks of 5 MiB, three for the largest trial
LEASE_SECONDS: Final = 10  # heartbeat interval announced to Flower, its smallest
SMALL_BYTES: Final = 32 << 10  # of content that travels in the message itself: no request for each of its parts
HEARTBEAT_SECONDS: Final = 3.0
HOLD_SECONDS: Final = 15.0  # how long the server holds an idle site's question for work
_MESSAGE_TYPES: Final = {
    "train": "train.round",
    "propose": "query.propose",
    "prepare": "query.prepare",
    "deliver": "query.deliver",
    "recall": "query.recall",
    "ask": "train.ask",
    "certify": "query.certify",
}


def content_of(parcel: Parcel) -> RecordDict:
    """A parcel as Flower's records: one ConfigRecord, and the vector as raw bytes that no loader ever parses."""
    records: dict[str, Any] = {"nexus": ConfigRecord({"kind": parcel.kind, **parcel.fields})}
    if parcel.vector is not None:
        raw = Array(dtype="uint8", shape=(len(parcel.vector),), stype="nexus.raw", data=parcel.vector)
        records["vector"] = ArrayRecord({"vector": raw})
    return RecordDict(records)


def parcel_of(message: Message) -> Parcel:
    """The inverse; Refusal ``malformed`` for anything else that a peer may have put into a message."""
    if message.has_error():
        raise Refusal("malformed", "an error of Flower's instead of a NEXUS message")
    records: dict[str, Any] = dict(message.content)
    config, arrays = records.pop("nexus", None), records.pop("vector", ArrayRecord())
    if records or not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise Refusal("malformed", "not a NEXUS message")
    fields, found = dict(config), dict(arrays)
    kind, vector = fields.pop("kind", None), found.pop("vector", None)
    plain = {name: value for name, value in fields.items() if isinstance(value, int | str | bytes)}
    if found or not isinstance(kind, str) or len(plain) < len(fields):
        raise Refusal("malformed", "not a NEXUS message")
    return Parcel(kind, plain, None if vector is None else vector.data)


def name_by_content(message: Message) -> None:
    """Give a message the id that names its content, as Flower's HttpGrid does before it sends."""
    message.metadata.__dict__["_message_id"] = message.object_id


def sent_ahead(message: Message) -> Message:
    """What is sent of a message before its parts: all of it where it is small, else what it says about itself."""
    parcel = parcel_of(message)
    size = len(parcel.vector or b"") + sum(len(value) for value in parcel.fields.values() if not isinstance(value, int))
    return message if size <= SMALL_BYTES else remove_content_from_message(message)


def has_all(message: Message) -> bool:
    """Whether a message came with its content, or is an error, and no part of it need be asked for."""
    return message.has_error() or len(message.content) > 0


def part_ids(tree: Any) -> list[str]:
    """The ids of a message's parts, its own last; Refusal ``malformed`` for more than ``MAX_PARTS``."""
    found = [part.object_id for part in itertools.islice(iterate_object_tree(tree), MAX_PARTS + 1)]
    if len(found) > MAX_PARTS:
        raise Refusal("malformed", f"a message of more than {MAX_PARTS} parts")
    return found


def received(answer: Any) -> tuple[Message, list[str]]:
    """The message in a server's answer, and the ids of its parts.

    Refusal ``malformed`` for one that Flower's parsers cannot read, whatever they raise.
    """
    try:
        return message_from_proto(answer.messages_list[0]), part_ids(answer.message_object_trees[0])
    except Refusal:
        raise
    except Exception as problem:  # noqa: BLE001  bytes of a peer must not look like a fault of this program
        raise Refusal("malformed", f"an answer that holds no message ({type(problem).__name__})") from None


def whole_message(object_id: str, contents: dict[str, bytes], metadata: Any) -> Message:
    """A message from its parts, under ``metadata`` that the caller believes: the inner copy is the sender's word.

    Refusal ``malformed`` for anything that Flower's parsers cannot read, whatever they raise.
    """
    try:
        chunks = sum(
            len(json.loads(part.split(b"\0", 1)[1])["arraychunk_ids"])
            for part in contents.values()
            if part.startswith(b"Array ")
        )
        if chunks > MAX_PARTS:  # an array may name one chunk again and again, and Flower would repeat it in memory
            raise Refusal("malformed", f"arrays of {chunks} chunks, at most {MAX_PARTS}")
        inner = inflate_object_from_contents(object_id, contents)
    except Refusal:
        raise
    except Exception as problem:  # noqa: BLE001  bytes of a peer must not be able to stop a process
        raise Refusal("malformed", f"parts that do not make a message ({type(problem).__name__})") from None
    if not isinstance(inner, Message):
        raise Refusal("malformed", f"a {type(inner).__name__} instead of a message")
    if inner.has_error():
        return make_message(metadata=metadata, error=inner.error)
    return make_message(metadata=metadata, content=inner.content)


def instruction(parcel: Parcel, node: int, ttl_seconds: float) -> Message:
    """A message from the server to one node."""
    return Message(content_of(parcel), dst_node_id=node, message_type=_MESSAGE_TYPES[parcel.kind], ttl=ttl_seconds)


def reply(parcel: Parcel, to: Message) -> Message:
    """A site's answer, dated as its question was: a site's own clock may be wrong."""
    made = Message(content_of(parcel), reply_to=to)
    made.metadata.__dict__["_created_at"], made.metadata.ttl = to.metadata.created_at, to.metadata.ttl
    return made
