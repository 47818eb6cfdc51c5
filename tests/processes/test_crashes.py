"""kill -9 of the server between every two trips, and of a site between its disk write and its reply: the run goes on.

The server, and one site in the second test, are real processes; the other sites are real connections from here, with
real keys, that train trivially.  A plan of one slot deals keys in every round, so that each round has all trips.
"""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_client import link
from nexus_common import certs, wire
from nexus_common.plan import Plan
from nexus_common.versions import trained_from
from nexus_server.records import FINISHED, MADE, RUNNING, STOPPED, STOPPING
from safetensors.numpy import load_file

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES = ("bank-a", "bank-b", "bank-c", "hospital-a", "hospital-b")
AGENT = SITES[0]
SIZES = pytest.mark.parametrize("n", [3, 5])
DEATHS = (  # when, at which trip, after how many versions of that process; and the newest version then
    ("after", "prepare", 0, 0),
    ("after", "setup", 1, 1),
    ("after", "adverts", 0, 1),
    ("after", "train", 0, 1),
    ("after", "round", 0, 1),
    ("after", "commit-set", 0, 1),
    ("before", "open", 0, 1),  # the sum is on disk
    ("after", "open", 0, 1),
    ("before", "setup", 1, 2),
)
ROUNDS = 3
WRITES = ("begin_epoch", "count_input", "note_opened")
STEP = 2 / (2**17 - 1)  # of the codec at a range of 1, over rounds that each halve what was before


class Once(set[bytes]):
    """Models that a site helped to open; ``again`` has those that it opened twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again: list[bytes] = []

    def add(self, model: bytes) -> None:
        if model in self:
            self.again.append(model)
        super().add(model)


@pytest.fixture(scope="module")
def enrolled() -> Iterator[Federation]:
    with Federation() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "FIRST_PAUSE_SECONDS", 0.1)
        patch.setattr(link, "LONGEST_PAUSE_SECONDS", 0.1)
        made.found(*SITES)
        yield made


@pytest.fixture
def federation(enrolled: Federation) -> Iterator[Federation]:
    if "server" not in enrolled.processes:
        enrolled.start("server")
    yield enrolled
    for site in list(enrolled.links):
        enrolled.unlink(site)
    if AGENT in enrolled.processes:
        enrolled.kill(AGENT)
    if rows(registry(enrolled), "SELECT name FROM runs WHERE state IN (?, ?)", RUNNING, STOPPING):
        enrolled.rest()


def plan_of(federation: Federation, name: str, n: int, rounds: int) -> Plan:
    return federation.plan(
        name,
        SITES[:n],
        rounds=rounds,
        local={"clip_norm": 20.0, "steps": 1, "batch_rows": 8},
        server={"optimiser": "fedavg", "step": 1.0},
        aggregation={"slots": 1, "range": 1.0},
        adapter={"salience": False},
    )


def simulated(federation: Federation, plan: Plan, names: tuple[str, ...]) -> list[SimSite]:
    sites = [SimSite(name, plan, certs.load_identity(federation.keys(name) / "identity.key")) for name in names]
    for site in sites:
        site.records.opened = Once()
        federation.link(site.name, site)
    return sites


def dying(what: str, *deaths: object) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name(f"dying_{what}.py")), *map(str, deaths)]


def rows(path: Path, query: str, *values: object) -> list[Any]:
    """What stands in a database, whether the process that keeps it runs or is dead."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query, values).fetchall()


def registry(federation: Federation) -> Path:
    return federation.home / "server" / "state" / "registry.sqlite"


def versions(federation: Federation, plan: Plan) -> list[tuple[int, str, str, list[str]]]:
    """Number, hash, state and cohort of each."""
    query = "SELECT number, hash, state, cohort FROM versions WHERE run = ? ORDER BY number"
    return [(*rest, json.loads(cohort)) for *rest, cohort in rows(registry(federation), query, plan.name)]


def reach(federation: Federation, plan: Plan, state: str) -> None:
    query = "SELECT state FROM runs WHERE name = ?"
    until(f"it is {state}", lambda: rows(registry(federation), query, plan.name) == [(state,)])


@SIZES
def test_a_server_that_dies_between_every_two_trips_loses_no_version_and_no_training(
    federation: Federation, n: int
) -> None:
    plan = plan_of(federation, f"server-{n}", n, ROUNDS)
    sites = simulated(federation, plan, SITES[:n])
    for site in sites:
        site.standing = wire.PENDING
    federation.ask("nexus-server", "train", str(federation.write_plan(plan)), "--detach")
    federation.kill("server")
    for site in sites:
        site.standing = wire.APPROVED  # so the run begins with the first process that dies
    before: list[Any] = []
    for *death, newest in DEATHS:
        federation.start("server", wait=False, program=dying("server", *death))
        federation.dies("server")
        now = versions(federation, plan)
        assert len(now) == newest + 1, death
        assert now[: len(before)] == before
        before = now
    federation.start("server", wait=False)
    reach(federation, plan, FINISHED)
    now = versions(federation, plan)
    assert now[: len(before)] == before
    assert [version[0] for version in now] == list(range(ROUNDS + 1))
    assert all(state == MADE and cohort == list(SITES[:n]) for _, _, state, cohort in now[1:])
    for site in sites:
        assert site.trained == ROUNDS, "once a round"
        (record,) = site.records.plans.values()
        assert (len(record.opened), record.opened.again) == (2 * (ROUNDS + 1), []), "each model and its weights"
        assert record.sent == ROUNDS + 1 + 2, "a closing round, and two inputs whose sum was not on disk yet"
    last = load_file(registry(federation).parent / "versions" / f"{now[-1][1]}.safetensors")["vector"]
    first = trained_from(plan, 0, plan.adapter.layout.first_vector(plan.adapter.seed_bytes))
    target = np.mean([site.target for site in sites], axis=0)
    np.testing.assert_allclose(last, target + (first - target) / 2**ROUNDS, atol=STEP)


@SIZES
def test_a_site_that_dies_between_its_write_and_its_reply_comes_back_and_costs_a_model_only_where_it_is_needed(
    federation: Federation, n: int
) -> None:
    plan, began, before = plan_of(federation, f"site-{n}", n, 1000), time.time(), list[Any]()
    sites = simulated(federation, plan, SITES[1:n])
    process = federation.start(AGENT, wait=False, program=dying("site", ",".join(WRITES)))
    federation.train(plan, approved_by=[AGENT])
    for write in WRITES:
        until(f"it dies at {write}", lambda w=write: died_at(federation, process, w))
        now = versions(federation, plan)
        assert now[: len(before)] == before
        before = now
    after = len(before) + 1  # behind the version whose sum it died over
    until("it has a part again", lambda: any(AGENT in cohort for *_, cohort in versions(federation, plan)[after:]))
    federation.ask("nexus-server", "stop", plan.name)
    reach(federation, plan, STOPPED)
    assert federation.end(AGENT) == 0
    now = versions(federation, plan)
    assert now[: len(before)] == before
    assert [version[0] for version in now] == list(range(len(now)))
    needed = n == 3
    assert [number for number, _, state, _ in now if state != MADE] == ([4] if needed else [])
    assert all(cohort in ([*SITES[:n]], [*SITES[1:n]]) for _, _, state, cohort in now[1:] if state == MADE)
    for site in sites:
        assert site.trained == len(now) - 1, "once for each model"
        assert (len(site.records.opened), site.records.opened.again) == (2 * (len(now) - 1), [])
    record, parts = federation.keys(AGENT).parent / "protocol.sqlite", sum(AGENT in cohort for *_, cohort in now)
    assert rows(record, "SELECT count(*) FROM opened WHERE at > ?", began) == [(2 * (parts + needed),)]
    assert rows(record, "SELECT sent FROM inputs WHERE plan = ?", plan.hash) == [(parts + needed + 1,)]
    last, (protocol,) = "SELECT last FROM epochs WHERE protocol_plan = ?", plan.protocol_plans
    assert rows(record, last, protocol.hash) == rows(registry(federation), last, protocol.hash) != []


def died_at(federation: Federation, process: subprocess.Popen[bytes], write: str) -> bool:
    log = federation.own_log(AGENT)
    assert process.poll() is None, log
    return f"died at {write}" in log
