"""Every assumption about Flower's internals, one sentence each: what fails here says what moved in a new release."""

import inspect

import httpx
import pytest
from nexus_client import flower as fc
from nexus_common import flower as fl
from nexus_common.wire import Parcel
from nexus_server import flower as fs
from nexus_server.gate import FLEET_PATHS
from nexus_server.grid import LocalGrid

REFUSED_PATHS = {f"/v1/fleet/{name}" for name in ("register-node", "unregister-node", "get-run", "get-fab")}


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (fs.InMemoryLinkState.create_run, ["fab_id", "fab_hash", "federation_id", "flwr_aid", "primary_task_type"]),
        (fs.InMemoryLinkState.create_node, ["owner_aid", "owner_name", "public_key", "heartbeat_interval"]),
        (fs.InMemoryLinkState.store_message_and_object_tree, ["message", "object_tree", "session_id"]),
        (fs.InMemoryLinkState.store_object, ["run_id", "session_id", "object_id", "object_content"]),
        (fs.InMemoryLinkState.get_message_res, ["message_ids", "run_id"]),
        (fs.InMemoryLinkState.activate_node, ["node_id", "heartbeat_interval"]),
        (fc.FleetHttpClient.__init__, ["base_url", "interceptors", "verify", "timeout"]),
        (fl.push_objects, ["objects", "push_object_fn", "object_ids_to_push"]),
        (fl.pull_objects, ["object_ids", "pull_object_fn", "max_time", "initial_backoff", "backoff_cap"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_private_functions_take_these_parameters(function: object, names: list[str]) -> None:
    assert set(names) <= set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_grid_has_exactly_these_abstract_methods() -> None:
    assert fs.Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }


def test_the_fleet_client_holds_an_httpx_client_that_can_be_replaced() -> None:
    client = fc.FleetHttpClient("https://127.0.0.1:1")
    assert isinstance(client._client, httpx.Client)


def test_no_fleet_route_is_there_that_nobody_judged() -> None:
    assert {route.path for route in fs.fleet_router.routes} == FLEET_PATHS | REFUSED_PATHS


def test_delivery_is_once_and_visible_on_the_instruction() -> None:
    grid = LocalGrid()
    grid.add_site("hospital-a", b"key")
    node = grid.node_of["hospital-a"]
    message = fl.instruction(Parcel("prepare", {"plan": b"x"}), node, 60)
    assert grid.push_messages([message]) == [None], "an instruction to a node never activated is refused"
    assert grid.state.activate_node(node, 10), "a registered node can activate"
    assert grid.state.activate_node(node, 10), "and at once again, as after a crash"
    assert grid.push_messages([message]) == [message.metadata.message_id]
    taken = grid.state.get_message_ins(node, 1)
    assert len(taken) == 1
    assert message.metadata.delivered_at
    assert not grid.state.get_message_ins(node, 1), "an instruction is delivered once"
    assert grid.state.get_run_status({grid.run_id})[grid.run_id].status == "running"
    grid.close()


def test_a_site_that_was_expelled_may_come_back_with_the_same_key() -> None:
    grid = LocalGrid()
    for _ in range(2):
        grid.add_site("hospital-a", b"key")
        assert grid.state.activate_node(grid.node_of["hospital-a"], 10)
        assert grid.sites() == {"hospital-a": b"key"}
        grid.expel("hospital-a")
    assert not grid.sites()
    grid.close()


def test_a_parcel_survives_flowers_records() -> None:
    message = fl.instruction(Parcel("train", {"run": b"r" * 32, "round": 7}, b"\x00\x01" * 1000), 5, 60)
    assert fl.parcel_of(message) == Parcel("train", {"run": b"r" * 32, "round": 7}, b"\x00\x01" * 1000)


def test_after_a_trip_nothing_is_left_in_flowers_store() -> None:
    grid = LocalGrid()
    grid.add_site("hospital-a", b"key")
    node = grid.node_of["hospital-a"]
    assert grid.state.activate_node(node, 10)
    grid.touch(node)
    message = fl.instruction(Parcel("prepare", {"plan": b"x" * 1000}), node, 60)
    (answer,) = grid.send_and_receive([message], timeout=0.1)
    assert answer.has_error()
    assert len(grid.state.object_store) == 0
    grid.close()
