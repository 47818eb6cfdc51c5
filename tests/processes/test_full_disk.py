"""A disk that fills up, at the server or at a site, costs no committed round and no run: it is said, and it ends."""

import collections
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from nexus_client.site import SiteHome
from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.errors import NexusError
from nexus_common.plan import Plan
from nexus_common.secagg.labels import label_of
from nexus_common.versions import StoredAdapter

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until
from tests.processes.volume import Volume, needs_root, volume

pytestmark = [pytest.mark.long, pytest.mark.processes, needs_root]
SITES = ("bank-a", "bank-b", "bank-c", "hospital-a")
AGENT = "hospital-a"
FIRST = SITES[0]  # the site at whose turn the disk fills up
SERVER_MEGABYTES, SITE_MEGABYTES = 150, 32  # a version is 0.6 MB
POINTS = (  # the message that is being answered when the server's disk fills up, and what is left of it
    ("round", 0),
    ("commit-set", 300_000),  # too little for the masked sum
    ("open", 0),
    ("train", 700_000),  # the sum, and then no version
)


class Trigger(SimSite):
    """A site that does something, once, before it answers a message."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.due: dict[str, Callable[[], None]] = {}
        self.done = threading.Event()

    def at(self, what: str, act: Callable[[], None]) -> None:
        """Do it at the next message of that kind, and wait until it is done."""
        self.done.clear()
        self.due[what] = act
        assert self.done.wait(30), f"no {what}"

    def __call__(self, message: wire.Message) -> wire.Message:
        kind = label_of(message.data) if isinstance(message, wire.Ask) else wire.purpose(message)
        if act := self.due.pop(kind, None):
            act()
            self.done.set()
        return super().__call__(message)


@pytest.fixture(scope="module")
def enrolled() -> Iterator[tuple[Federation, Volume, Volume]]:
    """A federation, the disk of its server, and that of one site."""
    with Federation() as made:
        hasty = Path(__file__).with_name("hasty_server.py")
        made.server_program = [sys.executable, str(hasty), str(made.home / "notes"), "5"]
        state = SiteHome.of(made.home / "sites", AGENT).state
        with volume(made.home / "server", SERVER_MEGABYTES) as servers, volume(state, SITE_MEGABYTES) as sites:
            made.found(*SITES, rows=60)
            yield made, servers, sites


@pytest.fixture(autouse=True)
def rest_afterwards(enrolled: tuple[Federation, Volume, Volume]) -> Iterator[None]:
    yield
    federation, *disks = enrolled
    for disk in disks:
        disk.empty()
    federation.rest()
    for site in list(federation.links):
        federation.unlink(site)


def plan_of(federation: Federation, name: str, sites: tuple[str, ...]) -> Plan:
    return federation.plan(
        name,
        sites,
        rounds=1000,
        gather_seconds=1.0,
        local={"clip_norm": 20.0, "steps": 1, "batch_rows": 8},
        server={"optimiser": "fedavg", "step": 1.0},
        aggregation={"slots": 4, "range": 1.0},
        adapter={"salience": False},
    )


def simulated(federation: Federation, plan: Plan) -> dict[str, Trigger]:
    made = {}
    for site in set(plan.names) - {AGENT}:
        made[site] = Trigger(site, plan, certs.load_identity(federation.keys(site) / "identity.key"))
        federation.link(site, made[site])
    return made


def rows(path: Path, query: str, *values: object) -> list[Any]:
    """What stands in a database."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query, values).fetchall()


def committed(federation: Federation) -> list[tuple[int, str]]:
    registry = federation.home / "server" / "state" / "registry.sqlite"
    return rows(registry, "SELECT number, hash FROM versions WHERE run = 'server' ORDER BY number")


def more_rounds(federation: Federation, more: int) -> None:
    done = federation.server_status()["round"]
    until(f"{more} more rounds", lambda: federation.server_status()["round"] >= done + more)


def check_slots(federation: Federation) -> None:
    """No site gave two different inputs in one slot."""
    found = collections.defaultdict(set)
    for line in (federation.home / "notes").read_text().splitlines():
        site, slot, reply = line.split()
        found[site, slot].add(reply)
    assert len(found) > 10
    assert max(map(len, found.values())) == 1, "one slot served two inputs"


def test_a_full_disk_of_the_server_costs_no_committed_round_and_no_run(
    enrolled: tuple[Federation, Volume, Volume],
) -> None:
    federation, disk, _ = enrolled
    plan = plan_of(federation, "server", SITES[:3])
    sites = simulated(federation, plan)
    federation.train(plan, approved_by=())
    more_rounds(federation, 2)
    for message, leave in POINTS:
        sites[FIRST].at(message, lambda room=leave: disk.fill(room))
        until("it is said", lambda: federation.server_status()["problem"])
        tries_again(federation)
        before, problem = committed(federation), federation.server_status()["problem"]
        assert "MB free in" in problem or "audit.jsonl cannot be written (No space left on device)" in problem
        assert "free some space" in problem or "free disk space" in problem
        tries_again(federation)
        assert committed(federation) == before
        assert not list((federation.home / "server" / "state" / "versions").glob(".*")), "a try leaves nothing"
        disk.empty()
        more_rounds(federation, 2)
        assert committed(federation)[: len(before)] == before
        assert federation.server_status()["problem"] is None
    assert "Traceback" not in federation.log("server")

    assert federation.end("server") == 0
    disk.fill()
    assert federation.start("server", wait=False).wait(30) == 1
    (line,) = federation.own_log("server").splitlines()
    assert "registry.sqlite cannot be opened" in line
    assert "0.0 MB are free there; free some space" in line
    disk.empty()
    federation.start("server")
    more_rounds(federation, 2)
    federation.rest()
    check_server(federation, plan, sites)


def tries_again(federation: Federation) -> None:
    """Wait for two more tries that come to nothing."""
    tries = federation.own_log("server").count("tries again in 0 s")
    until("it tries again", lambda: federation.own_log("server").count("tries again in 0 s") >= tries + 2)


def check_server(federation: Federation, plan: Plan, sites: dict[str, Trigger]) -> None:
    """Everything that was committed is whole, and nothing was spent on what could not be kept."""
    federation.ask("nexus-server", "audit", "--verify")
    state = federation.home / "server" / "state"
    assert rows(state / "registry.sqlite", "PRAGMA integrity_check") == [("ok",)]
    made = committed(federation)
    assert [number for number, _ in made] == list(range(len(made)))
    assert all((state / "versions" / f"{name}.safetensors").exists() for _, name in made)
    entries = federation.ask("nexus-server", "audit")["entries"]
    logged = collections.Counter(entry["version"] for entry in entries if entry["event"] == "version")
    assert max(logged.values()) <= 2, "not a line for each try"
    (asked,) = rows(state / "registry.sqlite", "SELECT asked FROM epochs")[0]
    assert asked <= len(made) + len(POINTS), "masked inputs were spent on tries"
    for site in sites.values():
        assert site.trained <= len(made), "once a model"
    check_slots(federation)


def test_a_full_disk_of_a_site_costs_it_some_rounds_and_the_others_none(
    enrolled: tuple[Federation, Volume, Volume],
) -> None:
    federation, _, disk = enrolled
    place, plan = SiteHome.of(federation.home / "sites", AGENT), plan_of(federation, "site", SITES)
    sites = simulated(federation, plan)
    disk.fill()
    ended = federation.start(AGENT, wait=False)
    assert ended.wait(60) == 1
    assert "0.0 MB are free there: is another process using it, or the disk full?" in federation.own_log(AGENT)
    assert "Traceback" not in federation.own_log(AGENT)
    disk.empty()

    agent = federation.start(AGENT)
    disk.fill()
    federation.policy(AGENT, approved_plans=[plan.hash.hex()])
    federation.ask("nexus-server", "train", str(federation.write_plan(plan)), "--detach")
    until("the proposal cannot be kept", lambda: "refused" in listed(federation, "standing"))
    said = federation.call("nexus-client", "status", "--site", AGENT).stdout
    assert "waits for you: 0.0 MB free in" in said
    assert "free some space there, and it goes on by itself" in said
    disk.empty()
    until("it is approved by itself", lambda: federation.server_status()["run"] == plan.name)

    until("it prepares", lambda: federation.site_status(AGENT)["phase"] == "preparing")
    disk.fill()
    until("it cannot", lambda: problem_of(federation))
    without(federation)
    disk.empty()
    back(federation)

    sites[FIRST].at("train", lambda: fill_to_the_last_line(disk, place))
    until("nothing can be logged", lambda: "what cannot be logged is not sent" in federation.own_log(AGENT))
    without(federation)
    assert "MB free" in problem_of(federation)
    disk.empty()
    back(federation)

    sites[FIRST].at("open", lambda: disk.fill(300_000))  # too little for the next version
    until("it refuses", lambda: AGENT in federation.server_status()["missing"])
    assert listed(federation, "readiness") == "refused: no-space"
    without(federation)
    disk.empty()
    back(federation)
    assert agent.poll() is None
    assert "Traceback" not in federation.own_log(AGENT)
    federation.rest()
    check_site(federation, place, plan)


def fill_to_the_last_line(disk: Volume, place: SiteHome) -> None:
    """When the agent's update is ready to be sent: no room for its record, nor for a line of the audit log."""
    time.sleep(2)
    disk.fill()
    log = AuditLog(place.audit_file)
    with pytest.raises(NexusError):
        while True:
            log.append("a line of the last page")


def listed(federation: Federation, what: str) -> str:
    """What ``nexus-server sites`` says of the site."""
    lines = federation.ask("nexus-server", "sites")["sites"]
    return str(next(line for line in lines if line["site"] == AGENT)[what])


def problem_of(federation: Federation) -> str:
    """What the agent's status says is the matter."""
    return str(federation.site_status(AGENT)["problem"] or "")


def without(federation: Federation) -> None:
    """The others' rounds go on, and status says without whom."""
    until("rounds without it", lambda: AGENT not in federation.server_status()["cohort"])
    more_rounds(federation, 2)
    until("it is named", lambda: federation.server_status()["missing"] == [AGENT])


def back(federation: Federation) -> None:
    """The site is in the sums again, by itself."""
    until("it is back", lambda: AGENT in federation.server_status()["cohort"])
    until("nothing is the matter", lambda: not federation.site_status(AGENT)["problem"])


def check_site(federation: Federation, place: SiteHome, plan: Plan) -> None:
    """What the site keeps is whole."""
    federation.ask("nexus-client", "audit", "--site", AGENT, "--verify")
    version = StoredAdapter.read(place.federated_file)
    assert version is not None
    assert version.plan == plan
    assert not list(place.state.rglob(".*.tmp"))
    check_slots(federation)
    federation.end(AGENT)
    record = place.state / "protocol.sqlite"
    assert rows(record, "PRAGMA integrity_check") == [("ok",)]
    (sent,) = rows(record, "SELECT sent FROM inputs")[0]
    notes = (federation.home / "notes").read_text().splitlines()
    assert sent >= len({line.split()[1] for line in notes if line.startswith(f"{AGENT} ")}), "each input is counted"


def test_a_full_disk_ends_no_program_that_opens_the_embedding_cache(tmp_path: Path) -> None:
    with volume(tmp_path / "disk", 1) as disk:
        disk.fill()
        script = "import sys, pathlib; from nexus_client.cache import Cache; Cache(pathlib.Path(sys.argv[1]))"
        tried = subprocess.run(
            [sys.executable, "-c", script, str(disk.path / "cache")], capture_output=True, text=True, check=False
        )
    assert tried.returncode == 1
    assert "cannot be opened ([Errno 28] No space left on device); 0.0 MB are free there" in tried.stderr
