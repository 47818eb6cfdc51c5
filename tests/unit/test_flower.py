"""Our parcels as Flower's messages: they survive, and whatever a peer puts in their place is refused as malformed."""

import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common import flower as fl
from nexus_common.errors import Refusal
from nexus_common.layout import MAX_DENDRITES, Layout
from nexus_common.stages import stages_of
from nexus_common.tail import SCALE, width
from nexus_common.wire import Parcel

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord  # isort: skip  only after our own module

SIGNED_BYTES = 114  # of a masked input, around the integers
Contents = dict[str, bytes]
PARCEL = Parcel("train", {"run": b"r" * 32, "round": 7}, b"\x00\x01" * 100)
PARCELS = st.builds(
    Parcel,
    st.sampled_from(["train", "prepare", "deliver"]),
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "kind"),
        st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary() | st.booleans(),
        max_size=4,
    ),
    st.none() | st.binary(min_size=1),
)


@pytest.fixture(autouse=True, scope="module")
def identity() -> Iterator[None]:
    """Flower asks for it when it makes a message."""
    mine = fl.TaskIdentity
    mine.run_id, mine.task_id, mine.node_id = 1, 1, fl.SUPERLINK_NODE_ID
    return


def taken_apart(message: fl.Message) -> tuple[str, Contents]:
    """A message's parts by their hashes, as they travel."""
    with fl.no_object_id_recompute():
        fl.name_by_content(message)
        parts = {part_id: part.deflate() for part_id, part in fl.get_all_nested_objects(message).items()}
    return message.metadata.message_id, parts


@functools.cache  # a message holds the time it was made
def sent() -> fl.Message:
    return fl.instruction(PARCEL, 5, 60)


def part(contents: Contents, kind: str, children: list[str], body: object) -> str:
    """Add a part of one's own making to ``contents``; its hash."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    whole = f"{kind} {','.join(children)} {len(data)}".encode() + b"\0" + data
    name = hashlib.sha256(whole).hexdigest()
    contents[name] = whole
    return name


def refusal_of_parts(object_id: str, contents: Contents) -> None:
    with pytest.raises(Refusal) as refused:
        fl.whole_message(object_id, contents, sent().metadata)
    assert refused.value.code == "malformed"


def arrived(records: dict[str, Any]) -> fl.Message:
    """A message with these records, taken apart and put together."""
    message = fl.Message(fl.RecordDict(records), dst_node_id=5, message_type="train.round")
    object_id, contents = taken_apart(message)
    return fl.whole_message(object_id, contents, message.metadata)


@given(PARCELS)
def test_a_parcel_survives_being_taken_apart_and_put_together(parcel: Parcel) -> None:
    message = fl.instruction(parcel, 5, 60)
    object_id, contents = taken_apart(message)
    assert fl.parcel_of(fl.whole_message(object_id, contents, message.metadata)) == parcel


def sent_ahead(parcel: Parcel) -> fl.Message:
    """What arrives of a message before its parts are asked for."""
    message = fl.instruction(parcel, 5, 60)
    fl.name_by_content(message)
    return fl.message_from_proto(fl.message_to_proto(fl.sent_ahead(message)))


@given(PARCELS)
def test_a_small_parcel_travels_in_the_message_itself(parcel: Parcel) -> None:
    arrived = sent_ahead(parcel)
    assert fl.has_all(arrived)
    assert fl.parcel_of(arrived) == parcel


@pytest.mark.parametrize("fields", [{"data": bytes(fl.SMALL_BYTES + 1)}, {"text": "t" * (fl.SMALL_BYTES + 1)}, {}])
def test_of_a_large_one_the_parts_are_asked_for(fields: dict[str, bytes | str]) -> None:
    arrived = sent_ahead(Parcel("train", fields, None if fields else bytes(fl.SMALL_BYTES + 1)))
    assert not fl.has_all(arrived)
    assert not arrived.content


def test_a_reply_goes_back_to_the_node_that_asked() -> None:
    reply = fl.reply(Parcel("readiness", {"state": "ready"}), sent())
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (5, fl.SUPERLINK_NODE_ID)
    assert fl.parcel_of(reply).fields == {"state": "ready"}


def test_a_late_reply_is_dated_as_its_question_and_flower_warns_of_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "handlers", [caplog.handler])
    question = fl.instruction(PARCEL, 5, 60)
    question.metadata.__dict__["_created_at"] -= 30
    reply = fl.reply(Parcel("readiness", {"state": "ready"}), question)
    assert (reply.metadata.created_at, reply.metadata.ttl) == (question.metadata.created_at, 60)
    assert not caplog.records


def test_the_senders_word_about_itself_is_not_believed() -> None:
    message, other = sent(), fl.instruction(PARCEL, 6, 60)
    object_id, contents = taken_apart(message)
    assert fl.whole_message(object_id, contents, other.metadata).metadata.dst_node_id == 6


def test_an_error_of_flowers_is_no_parcel() -> None:
    message = fl.Message(fl.Error(fl.ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=sent())
    object_id, contents = taken_apart(message)
    with pytest.raises(Refusal, match="malformed"):
        fl.parcel_of(fl.whole_message(object_id, contents, message.metadata))


CONFIG = {"kind": "train", "round": 1}


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"vector": ArrayRecord()},
        {"nexus": ConfigRecord()},
        {"nexus": ConfigRecord({"kind": b"train"})},
        {"nexus": ConfigRecord({"kind": 1})},
        {"nexus": ConfigRecord({**CONFIG, "round": 1.0})},
        {"nexus": ConfigRecord({**CONFIG, "round": [1]})},
        {"nexus": MetricRecord({"kind": 1})},
        {"nexus": ArrayRecord()},
        {"nexus": ConfigRecord(CONFIG), "more": ConfigRecord()},
        {"nexus": ConfigRecord(CONFIG), "vector": ConfigRecord()},
        {"nexus": ConfigRecord(CONFIG), "vector": ArrayRecord({"other": Array("uint8", (1,), "nexus.raw", b"1")})},
    ],
    ids=lambda records: " ".join(f"{name}={type(record).__name__}" for name, record in records.items()),
)
def test_other_records_of_flowers_are_malformed(records: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refused:
        fl.parcel_of(arrived(records))
    assert refused.value.code == "malformed"


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed(data: bytes) -> None:
    refusal_of_parts("a" * 64, {"a" * 64: data})


@given(st.data())
def test_a_broken_part_is_malformed_or_another_parcel_and_nothing_else(data: st.DataObject) -> None:
    message = sent()
    object_id, contents = taken_apart(message)
    name = data.draw(st.sampled_from(sorted(contents)))
    broken = bytearray(contents[name])
    at = data.draw(st.integers(0, len(broken) - 1))
    broken[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        fl.parcel_of(fl.whole_message(object_id, {**contents, name: bytes(broken)}, message.metadata))
    except Refusal as refused:
        assert refused.code == "malformed"


@pytest.mark.parametrize("kind", ["ConfigRecord", "ArrayChunk", "Array", "ArrayRecord", "RecordDict", "Message"])
def test_a_missing_part_is_malformed(kind: str) -> None:
    object_id, contents = taken_apart(sent())
    refusal_of_parts(object_id, {name: data for name, data in contents.items() if not data.startswith(kind.encode())})


@pytest.mark.parametrize("kind", ["ConfigRecord", "ArrayChunk", "Array", "ArrayRecord", "RecordDict"])
def test_a_part_of_another_kind_in_a_messages_place_is_malformed(kind: str) -> None:
    _, contents = taken_apart(sent())
    refusal_of_parts(next(n for n, data in contents.items() if data.startswith(f"{kind} ".encode())), contents)


@pytest.mark.parametrize("kind", ["ConfigRecord", "ArrayChunk", "Array", "ArrayRecord", "Message"])
def test_a_message_with_another_content_than_records_is_malformed(kind: str) -> None:
    object_id, contents = taken_apart(sent())
    inside = next(n for n, data in contents.items() if data.startswith(f"{kind} ".encode()))
    forged = part(contents, "Message", [inside], contents[object_id].split(b"\0", 1)[1])
    refusal_of_parts(forged, contents)


def test_a_part_within_itself_is_malformed() -> None:
    refusal_of_parts("a" * 64, {"a" * 64: b"RecordDict " + b"a" * 64 + b" 2\0{}"})


def test_parts_nested_too_deeply_are_malformed() -> None:
    contents: Contents = {}
    refusal_of_parts(part(contents, "RecordDict", [], b"[" * 100_000), contents)


def test_a_message_has_no_more_bytes_than_arrived() -> None:
    message = sent()
    object_id, contents = taken_apart(message)
    config = next(n for n, data in contents.items() if data.startswith(b"ConfigRecord"))
    head = {"dtype": "uint8", "shape": [1], "stype": "nexus.raw", "arraychunk_ids": [0] * 5000}
    array = part(contents, "Array", [part(contents, "ArrayChunk", [], bytes(1000))], head)
    record = part(contents, "ArrayRecord", [array], {"vector": array})
    inner = part(contents, "RecordDict", [config, record], {"nexus": config, "vector": record})
    forged = part(contents, "Message", [inner], contents[object_id].split(b"\0", 1)[1])
    size = sum(map(len, contents.values()))
    try:
        vector = fl.parcel_of(fl.whole_message(forged, contents, message.metadata)).vector or b""
    except Refusal:
        return
    assert len(vector) <= size


def test_the_largest_trial_that_a_plan_can_reach_is_few_enough_parts() -> None:
    """Its masked input is as long as the version in it: 4 bytes a value, with each arm's figures and a signature."""
    firsts = [Layout(n, salience) for n in range(MAX_DENDRITES + 1) for salience in (None, *range(MAX_DENDRITES + 1))]
    stages = {stage for first in firsts for stage in stages_of(first, MAX_DENDRITES, ("projection", "salience"))}
    values = max(stage.dim + len(stage.arms) * width((*SCALE, "vote")) for stage in stages)
    whole = np.arange(values + 1 + SIGNED_BYTES // 4, dtype="<u4").tobytes()  # no two chunks are alike
    _, parts = taken_apart(fl.instruction(Parcel("train", {"run": b"r" * 32}, whole), 5, 60))
    assert len(parts) == fl.MAX_PARTS
