"""Replies that a hostile site may send to the real grid: each ends in one decoded answer, and nothing of it stays."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nexus_common import flower as fl
from nexus_common import wire
from nexus_server.exchange import DEADLINE, MALFORMED, Failure, _decoded
from nexus_server.grid import LocalGrid

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict  # isort: skip
from flwr.app.message import remove_content_from_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.superlink.servicer.fleet import fleet_handlers

Attack = Callable[[Any, Any], None]
HONEST = wire.Say(b"hello")


@pytest.fixture(scope="module")
def grid() -> Iterator[LocalGrid]:
    made = LocalGrid()
    made.add_site("bank-a", b"key")
    assert made.state.activate_node(made.node_of["bank-a"], 10)
    yield made
    made.close()


def content(**records: Any) -> Any:
    """Records as they travel in a message."""
    message = fl.Message(RecordDict(records), dst_node_id=5, message_type="train.ask")
    fl.name_by_content(message)
    return fl.message_to_proto(message).content


def renamed(message: Any, tree: Any) -> None:
    message.metadata.message_id = tree.object_id = "ff" * 32


def named_as_the_question(message: Any, tree: Any) -> None:
    message.metadata.message_id = tree.object_id = message.metadata.reply_to_message_id


def with_words_of_its_own(message: Any, tree: Any) -> None:
    message.ClearField("content")
    message.error.code, message.error.reason = 1, "\x1b[2Jrefused: rounds-spent"


def empty(message: Any, tree: Any) -> None:
    message.content.Clear()
    message.content.SetInParent()


def nothing(message: Any, tree: Any) -> None:
    message.ClearField("content")


def metrics(message: Any, tree: Any) -> None:
    message.content.CopyFrom(content(nexus=MetricRecord({"a": 1})))


def a_huge_shape(message: Any, tree: Any) -> None:
    array = Array(dtype="float64", shape=(10**9, 10**9), stype="numpy.ndarray", data=b"\x80\x04.")
    message.content.CopyFrom(content(nexus=ConfigRecord({"kind": "masked"}), vector=ArrayRecord({"vector": array})))


def lists(message: Any, tree: Any) -> None:
    message.content.CopyFrom(content(nexus=ConfigRecord({"kind": "say", "data": [b"1"]})))


def no_time(message: Any, tree: Any) -> None:
    message.metadata.created_at = message.metadata.ttl = float("nan")


def a_part_more(message: Any, tree: Any) -> None:
    tree.children.add().object_id = "aa" * 32


def trip(grid: LocalGrid, attack: Attack) -> wire.Message | Failure:
    """What the round logic hears of a reply that ``attack`` has changed."""
    node = grid.node_of["bank-a"]
    grid.touch(node)
    instruction = fl.instruction(wire.encode(wire.Ask(bytes(32), 0, b"", b"x")), node, 60)
    answers: list[fl.Message] = []
    asking = threading.Thread(target=lambda: answers.extend(grid.send_and_receive([instruction], timeout=0.5)))
    asking.start()
    while not grid.has_work(node):
        time.sleep(0.01)
    pull = fl.PullMessagesRequest(node=fl.Node(node_id=node))
    (taken,) = fleet_handlers.pull_messages(pull, grid.state, grid.state.object_store).messages_list
    reply = fl.reply(wire.encode(HONEST), fl.message_from_proto(taken))
    with fl.no_object_id_recompute():
        fl.name_by_content(reply)
        tree = fl.get_object_tree(reply)
    message = fl.message_to_proto(fl.sent_ahead(reply))
    attack(message, tree)
    push = fl.PushMessagesRequest(
        node=fl.Node(node_id=node),
        messages_list=[message],
        message_object_trees=[tree],
        clientapp_runtime_list=[0.0],
    )
    with contextlib.suppress(Exception):  # the door answers with an error then
        fleet_handlers.push_messages(push, grid.state)
    asking.join(20)
    (answer,) = answers
    assert len(grid.state.object_store) == len(grid.state.message_ins_store) == len(grid.state.message_res_store) == 0
    return _decoded(answer)[0]


@pytest.mark.parametrize(
    ("attack", "heard"),
    [
        (lambda message, tree: None, HONEST),
        (renamed, HONEST),
        (a_part_more, HONEST),
        (with_words_of_its_own, Failure(MALFORMED)),
        (metrics, Failure("malformed")),
        (a_huge_shape, wire.Masked(b"\x80\x04.")),  # bytes, whatever they call themselves
        (lists, Failure("malformed")),
        (empty, Failure(DEADLINE)),
        (nothing, Failure(DEADLINE)),
        (named_as_the_question, None),
        (no_time, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_hostile_reply_is_one_answer_and_leaves_nothing(
    grid: LocalGrid, attack: Attack, heard: wire.Message | Failure | None
) -> None:
    found = trip(grid, attack)
    assert found == heard if heard else isinstance(found, Failure | wire.Say)
    assert trip(grid, lambda message, tree: None) == HONEST


def asked(grid: LocalGrid, sites: int = 1) -> list[Any]:
    """Instructions of a trip that is on, one for each node, as Flower's handlers see them."""
    nodes = list(grid.node_of.values())[:sites]
    made = [fl.instruction(wire.encode(wire.Ask(bytes(32), 0, b"", bytes([node % 251]))), node, 60) for node in nodes]
    grid.push_messages(made)
    return made


def pushed(grid: LocalGrid, node: int, question: Any, tree: Any, name: str) -> Any:
    """A large reply of a node, of which so far only its name and tree are sent."""
    reply = fl.reply(wire.encode(HONEST), question)
    with fl.no_object_id_recompute():
        fl.name_by_content(reply)
        message = fl.message_to_proto(remove_content_from_message(reply))
    message.metadata.message_id = tree.object_id = name
    push = fl.PushMessagesRequest(node=fl.Node(node_id=node), messages_list=[message], message_object_trees=[tree])
    return fleet_handlers.push_messages(push, grid.state)


def tree_of(*children: str) -> Any:
    tree = ObjectTree()
    for child in children:
        tree.children.add().object_id = child
    return tree


def sha(*of: int) -> str:
    return hashlib.sha256(bytes(of)).hexdigest()


def test_of_a_reply_one_tree_is_taken_and_of_a_refused_one_nothing_stays(grid: LocalGrid) -> None:
    (question,) = asked(grid)
    node, before = question.metadata.dst_node_id, len(grid.state.object_store)
    for number in range(50):
        answer = pushed(grid, node, question, tree_of(*(sha(number, part) for part in range(15))), sha(1))
        assert bool(answer.objects_to_push) == (number == 0)
    assert len(grid.state.object_store) == before + 16
    stranger = fl.instruction(wire.encode(wire.Prepare(b"never sent")), node, 60)
    fl.name_by_content(stranger)
    for number in range(50):
        assert not pushed(grid, node, stranger, tree_of(), sha(2, number)).objects_to_push
    assert len(grid.state._object_push_sessions) <= 2, "the question's own and the reply's"
    grid._forget({question.metadata.message_id: question})


@pytest.mark.timeout(60)
def test_parts_of_several_sites_that_name_each_other_are_no_endless_walk() -> None:
    grid = LocalGrid()
    try:
        for site in range(7):
            grid.add_site(f"site-{site}", bytes([site]))
            assert grid.state.activate_node(grid.node_of[f"site-{site}"], 10)
        questions = asked(grid, 7)
        for level, question in enumerate(questions):  # each reply holds the one before fifteen times
            node = question.metadata.dst_node_id
            pushed(grid, node, question, tree_of(*[sha(level - 1 if level else 99)] * 15), sha(level))
        names = [question.metadata.message_id for question in questions]
        began = time.monotonic()
        last = [reply for reply in grid.pull_messages(names) if reply.metadata.message_id == sha(6)]
        assert grid._whole(last[0]) is None, "its parts may still come"
        assert time.monotonic() - began < 5, "15 to the power of 6 steps otherwise"
        grid._forget(dict(zip(names, questions, strict=True)))
    finally:
        grid.close()
