"""Whole epochs and single failures, byte for byte as the specification's vectors have them."""

import json
from pathlib import Path
from typing import Any

import pytest
from nexus_common.errors import REFUSALS, Refusal
from nexus_common.secagg.client import Client
from nexus_common.secagg.codec import decode as mean_of
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.messages import TO_SITES, kind_of
from nexus_common.secagg.plan import decode
from nexus_common.secagg.server import Server

from tests.protocol.vectors import FOLDER, offer_of, site_of, vector

TRANSCRIPTS = sorted(path.stem for path in FOLDER.glob("transcript-*.json"))
REFUSED = [path for path in sorted((FOLDER / "refuse").glob("*.json")) if not path.stem.startswith("plan-")]


def test_all_of_the_specifications_refusals_are_here() -> None:
    every = [json.loads(path.read_text())["refuse"] for path in (FOLDER / "refuse").glob("*.json")]
    assert len(every) == 93
    assert set(every) <= REFUSALS.keys()
    assert len(TRANSCRIPTS) == 5


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_sites_say_what_the_transcript_says(name: str) -> None:
    said = vector(name)
    sites = [site_of(said, one) for one in said["sites"]]
    replies: list[tuple[int, bytes]] = []
    for message in said["messages"]:
        if message["from"] >= 0:
            assert replies.pop(0) == (message["from"], bytes.fromhex(message["bytes"]))
            continue
        data, offer = bytes.fromhex(message["bytes"]), offer_of(message)
        reply = sites[message["to"]].handle(data, offer)
        assert sites[message["to"]].handle(data, offer) == reply, "a repeated message gets the same reply"
        if reply is not None:
            replies.append((message["to"], reply))
    assert not replies


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_server_says_what_the_transcript_says(name: str) -> None:
    said = vector(name)
    plan = decode(bytes.fromhex(said["plan"]))
    server, rounds, sums = Server(plan, said["epoch"]), [b""], []
    for message in said["messages"]:
        data = bytes.fromhex(message["bytes"])
        if message["from"] >= 0:
            server.receive(data)
            server.receive(data)  # once more: no effect
            continue
        kind = kind_of(data, TO_SITES)
        if kind == "round" and data != rounds[-1]:
            if len(rounds) > 1:
                sums.append((server.survivors, server.total()))
            rounds.append(server.round(int.from_bytes(data[49:51], "little"), data[51:]))
        made = {
            "setup": server.start,
            "adverts": server.adverts,
            "inbox": lambda to=message["to"]: server.inbox(to),
            "round": lambda: rounds[-1],
            "commit-set": server.commit,
            "open": lambda: server.open().message,
        }
        assert made[kind]() == data
    sums.append((server.survivors, server.total()))
    assert len(sums) == len(said["sums"])
    for (survivors, total), expected in zip(sums, said["sums"].values(), strict=True):
        assert survivors == expected["survivors"]
        assert [int(x) % 2**plan.mod_bits for x in unpack_signed(total, plan.mod_bits)] == expected["sum"]
        mean, weight = mean_of(plan, total, len(survivors))
        assert (mean.tolist(), weight) == (expected["mean"], expected["weight"])


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_failure_is_refused_with_exactly_its_code_and_changes_nothing(path: Path) -> None:
    case = json.loads(path.read_text())
    party: Client | Server = (
        site_of(case, case) if case["party"] == "site" else Server(decode(bytes.fromhex(case["plan"])), case["epoch"])
    )
    for step in case["steps"]:
        assert played(party, step) == (step.get("out") and bytes.fromhex(step["out"])), step
    for _ in range(2):  # nothing changed: it is refused the same way again
        with pytest.raises(Refusal) as refused:
            played(party, case["last"])
        assert refused.value.code == case["refuse"]
    if isinstance(party, Client) and case["steps"]:
        last = case["steps"][-1]
        assert played(party, last) == (last.get("out") and bytes.fromhex(last["out"])), "a repeat still is answered"


def played(party: Client | Server, step: Any) -> bytes | None:
    """One step of a case, and what it gives."""
    if isinstance(party, Client):
        return party.handle(bytes.fromhex(step["in"]), offer_of(step))
    if "in" in step:
        party.receive(bytes.fromhex(step["in"]))
        return None
    args = [bytes.fromhex(arg) if isinstance(arg, str) else arg for arg in step["args"]]
    if step["do"] == "open":
        return party.open().message
    return getattr(party, step["do"])(*args)
