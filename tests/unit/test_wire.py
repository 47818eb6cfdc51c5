"""Messages and parcels: what is sent arrives, what is not exactly a message is refused, and signatures bind."""

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st
from nexus_common import wire
from nexus_common.errors import REFUSALS, Refusal
from nexus_common.holdings import Holding, pack_holdings
from nexus_common.layout import Layout
from nexus_common.secagg.labels import label

BYTES_32 = st.binary(min_size=32, max_size=32)
ROUND = st.integers(0, 2**31 - 1)
HASHES = st.lists(BYTES_32, max_size=3, unique=True).map(b"".join)


def holdings(numbers: set[int]) -> bytes:
    return pack_holdings([Holding(number, 0, "ab" * 32) for number in sorted(numbers)])


MESSAGES = st.one_of(
    st.builds(wire.Prepare, st.binary()),
    st.builds(wire.Readiness, st.sampled_from([wire.READY, wire.PREPARING])),
    st.builds(wire.TrainRound, BYTES_32, ROUND, ROUND, st.integers(0, 1), st.integers(0, 1), st.binary()),
    st.builds(wire.Trained, BYTES_32),
    st.builds(wire.Ask, BYTES_32, ROUND, st.binary(max_size=70), st.binary(max_size=70)),
    st.builds(wire.Say, st.binary(max_size=70)),
    st.builds(wire.Masked, st.binary()),
    st.builds(wire.Deliver, BYTES_32, ROUND, ROUND, HASHES, st.binary()),
    st.builds(wire.Received, BYTES_32),
    st.builds(wire.Propose, st.binary(max_size=70)),
    st.builds(
        wire.Standing,
        st.sampled_from([wire.PENDING, wire.APPROVED, wire.WITHDRAWN]),
        st.sampled_from(["", *sorted(REFUSALS)]),
        st.binary(min_size=64, max_size=64),
    ),
    st.builds(wire.Recall, BYTES_32, st.just(b"") | BYTES_32),
    st.builds(wire.Holds, st.just(b"") | st.builds(holdings, st.sets(ROUND, max_size=16))),
    st.builds(wire.Given, st.binary()),
    st.builds(wire.Certify, st.binary(max_size=70), st.binary(max_size=70)),
    st.builds(wire.Certified, BYTES_32),
    st.builds(wire.Refused, st.sampled_from(sorted(REFUSALS))),
)
NAMES = st.sampled_from(["plan", "state", "run", "round", "model", "signature", "code", "vector", "digest"]) | st.text(
    max_size=5
)
VALUES = st.binary(max_size=70) | st.text(max_size=9) | st.integers() | BYTES_32 | st.booleans() | st.just(wire.READY)
ODD = st.none() | st.floats() | st.lists(st.integers(), max_size=2)
PARCELS = st.builds(
    wire.Parcel,
    st.sampled_from(sorted(wire.KINDS)) | st.text(max_size=9),
    st.dictionaries(NAMES, VALUES | ODD, max_size=4),
    st.none() | st.binary(max_size=9),
)
LAYOUT = Layout()
RUN, VECTOR = bytes(32), b"\x00\x00\x80\x3f"


def refusal_of(parcel: wire.Parcel) -> str:
    with pytest.raises(Refusal) as refused:
        wire.decode(parcel)
    return refused.value.code


def test_the_messages_tried_here_are_all_there_are() -> None:
    assert set(wire.KINDS.values()) == set(wire.Message.__args__)
    assert len(wire.KINDS) == 17


@given(MESSAGES)
def test_every_message_survives_its_parcel(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(PARCELS)
def test_a_parcel_is_a_message_or_a_refusal_and_nothing_else(parcel: wire.Parcel) -> None:
    try:
        message = wire.decode(parcel)
    except Refusal as refused:
        assert refused.code in ("unknown-message", "malformed")
    else:
        assert wire.decode(wire.encode(message)) == message


@given(MESSAGES, st.data())
def test_a_missing_field_is_malformed(message: wire.Message, data: st.DataObject) -> None:
    parcel = wire.encode(message)
    assume(parcel.fields)
    gone = data.draw(st.sampled_from(sorted(parcel.fields)))
    fields = {name: value for name, value in parcel.fields.items() if name != gone}
    assert refusal_of(dataclasses.replace(parcel, fields=fields)) == "malformed"


@given(MESSAGES, st.text(), VALUES)
def test_a_further_field_is_malformed(message: wire.Message, name: str, value: wire.Field) -> None:
    parcel = wire.encode(message)
    assert refusal_of(dataclasses.replace(parcel, fields={**parcel.fields, f"x{name}": value})) == "malformed"


@given(MESSAGES, st.data())
def test_a_field_of_another_type_is_malformed(message: wire.Message, data: st.DataObject) -> None:
    parcel = wire.encode(message)
    assume(parcel.fields)
    name = data.draw(st.sampled_from(sorted(parcel.fields)))
    other = data.draw((VALUES | ODD).filter(lambda value: type(value) is not type(parcel.fields[name])))
    assert refusal_of(dataclasses.replace(parcel, fields={**parcel.fields, name: other})) == "malformed"


@given(MESSAGES)
def test_a_vector_where_there_is_none_and_none_where_there_is_one_is_malformed(message: wire.Message) -> None:
    parcel = wire.encode(message)
    other = b"1234" if parcel.vector is None else None
    assert refusal_of(dataclasses.replace(parcel, vector=other)) == "malformed"


@pytest.mark.parametrize("kind", ["", "Train", "train ", "x" * 1000])
def test_an_unknown_kind_is_an_unknown_message(kind: str) -> None:
    assert refusal_of(wire.Parcel(kind, {})) == "unknown-message"


@pytest.mark.parametrize("number", [-1, 2**31, True])
def test_a_round_out_of_range_is_malformed(number: int) -> None:
    assert refusal_of(wire.Parcel("train", {"run": RUN, "round": number, "use": 1, "close": 0}, b"")) == "malformed"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_hash_has_32_bytes(length: int) -> None:
    assert refusal_of(wire.Parcel("received", {"model": bytes(length)})) == "malformed"


@pytest.mark.parametrize("bad", [b"1", bytes(80), holdings({1}) + holdings({0}), holdings(set(range(17)))[:1] * 700])
def test_a_list_of_versions_is_whole_short_and_rises(bad: bytes) -> None:
    assert refusal_of(wire.Parcel("holds", {"versions": bad})) == "malformed"


@pytest.mark.parametrize("length", [1, 31, 33, 64])
def test_what_is_asked_for_is_one_hash_or_nothing(length: int) -> None:
    assert refusal_of(wire.Parcel("recall", {"run": RUN, "wanted": bytes(length)})) == "malformed"


HASH_LIST = b"".join(number.to_bytes(32) for number in range(wire.MOST_WITHDRAWN + 1))


@pytest.mark.parametrize("bad", [b"1", bytes(31), bytes(33), bytes(64), HASH_LIST], ids=len)
def test_a_list_of_hashes_is_whole_short_and_without_repeats(bad: bytes) -> None:
    delivered = wire.encode(wire.Deliver(RUN, 1, 0, HASH_LIST[32:], VECTOR))
    assert isinstance(wire.decode(delivered), wire.Deliver)
    assert refusal_of(dataclasses.replace(delivered, fields={**delivered.fields, "withdrawn": bad})) == "malformed"


def test_a_field_has_at_most_a_mebibyte() -> None:
    assert wire.decode(wire.Parcel("prepare", {"plan": bytes(1 << 20)})) == wire.Prepare(bytes(1 << 20))
    assert refusal_of(wire.Parcel("prepare", {"plan": bytes((1 << 20) + 1)})) == "malformed"


@pytest.mark.parametrize(
    ("kind", "name"), [("readiness", "state"), ("refused", "code"), ("standing", "state"), ("standing", "code")]
)
def test_a_word_outside_of_its_table_is_malformed(kind: str, name: str) -> None:
    good = {"standing": {"state": "approved", "code": "", "signature": bytes(64)}}.get(kind, {})
    assert refusal_of(wire.Parcel(kind, good | {name: "almost"})) == "malformed"
    assert not good or wire.decode(wire.Parcel(kind, good))


def test_a_standing_is_believed_only_under_its_own_sites_signature() -> None:
    key, plan = Ed25519PrivateKey.generate(), bytes(32)
    public = key.public_key().public_bytes_raw()
    told = wire.signed_standing(key, plan, "a", wire.PENDING, "paused")
    wire.verify_standing(public, plan, "a", told)
    for wrong in (
        (public, bytes(31) + b"1", "a", told),
        (public, plan, "b", told),
        (public, plan, "a", dataclasses.replace(told, state=wire.APPROVED)),
        (public, plan, "a", dataclasses.replace(told, code="")),
        (bytes(32), plan, "a", told),
    ):
        with pytest.raises(Refusal, match="bad-signature"):
            wire.verify_standing(*wrong)


@pytest.mark.parametrize("bad", [b"", bytes(4 * LAYOUT.dim - 1), bytes(4 * LAYOUT.dim + 4)], ids=len)
def test_a_vector_of_another_length_is_a_bad_update(bad: bytes) -> None:
    with pytest.raises(Refusal, match=f"bad-update: {len(bad)} bytes"):
        wire.unpack(bad, LAYOUT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_a_bad_update(value: float) -> None:
    vector = LAYOUT.first_vector(b"")
    vector[7] = value
    with pytest.raises(Refusal, match="bad-update: 1 of 147840 values"):
        wire.unpack(wire.pack(vector), LAYOUT)


def test_packed_values_are_little_endian_whatever_the_array_is() -> None:
    assert wire.pack(np.array([[1.0, 2.0], [3.0, 4.0]], ">f4").T[0]) == b"\x00\x00\x80\x3f\x00\x00\x40\x40"


def test_a_model_is_named_by_layout_content_and_kind_of_round_and_nothing_else() -> None:
    layouts, kinds = (Layout(), Layout(0, 0)), (False, True)
    names = {wire.model_hash(one, data, close=kind) for one in layouts for data in (b"", VECTOR) for kind in kinds}
    assert len(names) == 8


def test_protocol_messages_are_logged_under_their_own_names() -> None:
    for kind in ("setup", "adverts", "inbox", "round", "commit-set", "open"):
        assert wire.purpose(wire.Ask(RUN, 1, b"", label(kind) + b"...")) == kind
    assert wire.purpose(wire.Say(label("set-sig"))) == "set-sig"
    assert wire.purpose(wire.Masked(b"")) == "masked"
    assert wire.purpose(wire.Say(b"nexus-sa/1 without an end")) == "say"
