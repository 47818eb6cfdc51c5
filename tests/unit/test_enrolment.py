"""The invitation line: what it says comes back, what is not a whole line is called that; and what a site signs."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.address import split_address
from nexus_common.enrolment import EnrolRequest, Invite, request_bytes
from nexus_common.errors import NexusError
from pydantic import ValidationError

HOSTS = st.sampled_from(["127.0.0.1", "[::1]", "localhost", "server.example"]) | st.ip_addresses(v=4).map(str)
INVITES = st.builds(
    Invite,
    st.builds("{}:{}".format, HOSTS, st.integers(1, 65_535)),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
)
LINE = Invite("127.0.0.1:8444", "hospital-a", bytes(32), bytes(range(16))).line
MARKS = st.text(st.sampled_from("@:/?#[]%&= \t\nA1é\0"), max_size=3) | st.text(max_size=3)


@given(INVITES)
def test_a_line_says_what_was_put_into_it(invite: Invite) -> None:
    assert Invite.parse(invite.line) == invite


@given(INVITES)
def test_a_line_is_plain_characters_without_a_space(invite: Invite) -> None:
    assert set(invite.line) <= set(string.ascii_letters + string.digits + ":/@?=._-%[]")


def test_white_space_around_a_pasted_line_does_not_matter() -> None:
    assert Invite.parse(f"  {LINE}\r\n") == Invite.parse(LINE)


@given(st.text())
def test_garbage_is_called_no_invitation_line(text: str) -> None:
    with pytest.raises(NexusError, match="this is not an invitation line"):
        Invite.parse(text)


@given(st.lists(st.tuples(st.integers(0, len(LINE) - 1), st.integers(0, 3), MARKS), min_size=1, max_size=3))
def test_a_damaged_line_raises_nothing_but_nexus_error(cuts: list[tuple[int, int, str]]) -> None:
    line = LINE
    for at, length, mark in cuts:
        line = line[:at] + mark + line[at + length :]
    try:
        invite = Invite.parse(line)
    except NexusError as problem:
        assert LINE[20:30] not in str(problem), "an error must not show the secret"
    else:
        split_address(invite.address)


@pytest.mark.parametrize(
    "line",
    [
        "",
        LINE[:-1],
        LINE[:40],
        LINE.replace("nexus:", "https:"),
        LINE.replace(":8444", ""),
        LINE.replace(":8444", ":0"),
        LINE.replace(":8444", ":65536"),
        LINE.replace("127.0.0.1", "\x80127.0.0.1"),
        LINE.replace("127.0.0.1", ""),
        LINE.replace("127.0.0.1", "[::1"),
        LINE.replace("hospital-a", "Hospital"),
        LINE.replace("hospital-a", ""),
        LINE.replace("hospital-a", "a/../b"),
        LINE.replace("?ca=", "?cb="),
        LINE.replace("?ca=", "?ca=AAAA"),
        LINE.replace("AAEC", "AAECAAAA"),
        LINE + LINE,
    ],
)
def test_a_line_that_is_not_whole_is_called_that(line: str) -> None:
    with pytest.raises(NexusError, match="paste it whole"):
        Invite.parse(line)


def test_what_a_site_signs_is_pinned() -> None:
    signed = request_bytes("hospital-a", b"secret", b"CSR")
    assert (
        signed
        == b"nexus enrol 1\nhospital-a\n"
        + bytes.fromhex("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b")
        + b"CSR"
    )


@given(st.binary(), st.binary())
def test_bytes_of_a_request_survive_its_json(secret: bytes, csr: bytes) -> None:
    request = EnrolRequest(site="a", secret=secret, csr=csr, identity=bytes(32), signature=bytes(64))
    assert EnrolRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize("change", [{"site": "../a"}, {"secret": "%"}, {"more": 1}, {"csr": None}])
def test_a_request_that_is_not_exactly_one_is_refused(change: dict) -> None:
    good = {"site": "a", "secret": b"", "csr": b"", "identity": b"", "signature": b""}
    EnrolRequest.model_validate(good)
    with pytest.raises(ValidationError):
        EnrolRequest.model_validate(good | change)
