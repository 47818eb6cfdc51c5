"""Years go by: certificates renew themselves, a box was off too long, keys are lost, a site is shut out."""

import datetime as dt
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from nexus_common import certs, wire
from nexus_common.plan import Plan

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = pytest.mark.processes
SITES = ("bank-a", "bank-b", "hospital-a")
AGENT = "hospital-a"
QUICK = {"local": {"steps": 5, "batch_rows": 8}, "adapter": {"salience": False}}


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES)
        yield made


@pytest.fixture(autouse=True)
def rest_afterwards(federation: Federation) -> Iterator[None]:
    yield
    federation.rest()
    for site in list(federation.links):
        federation.unlink(site)
    if AGENT in federation.processes:
        federation.end(AGENT)


def days_left(federation: Federation, site: str) -> int:
    """Of the certificate at the site."""
    certificate = x509.load_pem_x509_certificate((federation.keys(site) / "site.crt").read_bytes())
    return (certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)).days


def listed(federation: Federation, site: str) -> dict[str, object]:
    """The site's line in ``nexus-server sites``."""
    lines = federation.ask("nexus-server", "sites")["sites"]
    found: dict[str, object] = next(line for line in lines if line["site"] == site)
    return found


def grow_old(federation: Federation, site: str, days: int) -> None:
    """As if the site's certificate had been issued so many days ago."""
    keys, ca = federation.keys(site), federation.home / "server" / "keys"
    now = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    issued = certs.issue_site(
        certs.load_transport_key(ca / "ca.key"),
        x509.load_pem_x509_certificate((ca / "ca.crt").read_bytes()),
        certs.load_transport_key(keys / "transport.key").public_key(),
        site,
        certs.raw_identity(certs.load_identity(keys / "identity.key")),
        now,
    )
    (keys / "site.crt").write_bytes(certs.pem(issued))
    with sqlite3.connect(federation.home / "server" / "state" / "registry.sqlite") as database:
        database.execute("UPDATE sites SET expires = ? WHERE name = ?", (issued.not_valid_after_utc.timestamp(), site))


def begin(federation: Federation, name: str, sites: tuple[str, ...] = SITES) -> Plan:
    """A run of many rounds, with the real agent and two simulated sites."""
    plan = federation.plan(name, sites, rounds=1000, **QUICK)
    for site in sites:
        if site != AGENT:
            simulated = SimSite(site, plan, certs.load_identity(federation.keys(site) / "identity.key"))
            federation.link(site, simulated)
    federation.start(AGENT)
    federation.train(plan, approved_by=[AGENT])
    return plan


def rounds(federation: Federation, more: int) -> None:
    """Wait until so many more rounds are done."""
    done = federation.server_status()["round"]
    until(f"{more} more rounds", lambda: federation.server_status()["round"] >= done + more)


def test_a_certificate_renews_itself_in_mid_run_without_a_restart(federation: Federation) -> None:
    grow_old(federation, AGENT, 300)
    assert days_left(federation, AGENT) < 121
    begin(federation, "renewed")
    process = federation.processes[AGENT]
    until("it is renewed", lambda: days_left(federation, AGENT) > 360)
    rounds(federation, 2)
    until("the server knows", lambda: int(str(listed(federation, AGENT)["certificate_days_left"])) > 360)
    assert process.poll() is None
    assert federation.site_status(AGENT)["certificate_days_left"] > 360
    events = [entry["event"] for entry in federation.ask("nexus-client", "audit", "--site", AGENT)["entries"]]
    assert events.count("certificate renewed") == 1
    cohort = federation.versions("renewed")[-1]["cohort"]
    assert AGENT in cohort


def test_a_box_that_was_off_until_its_certificate_ran_out_is_let_in_again_with_its_keys(federation: Federation) -> None:
    grow_old(federation, AGENT, 366)
    federation.start(AGENT, wait=False)
    until("it is refused", lambda: "again in" in federation.own_log(AGENT))
    checked = federation.call("nexus-client", "check", "--site", AGENT)
    assert checked.returncode == 1
    assert f"nexus-server invite {AGENT} --renew" in checked.stdout
    identity = (federation.keys(AGENT) / "identity.key").read_bytes()
    refused = federation.call("nexus-server", "invite", AGENT)
    assert refused.returncode == 1
    assert "--renew" in refused.stderr
    line = federation.ask("nexus-server", "invite", AGENT, "--renew")["line"]
    policy = (federation.home / "sites" / AGENT / "policy.toml").read_text()
    federation.ask("nexus-client", "join", stdin=line + "\n")
    assert (federation.keys(AGENT) / "identity.key").read_bytes() == identity
    assert (federation.home / "sites" / AGENT / "policy.toml").read_text() == policy
    until("the running agent takes it up", lambda: federation.connected(AGENT))
    assert days_left(federation, AGENT) > 360


def test_lost_keys_are_replaced_and_a_renewal_is_for_the_old_ones_alone(federation: Federation) -> None:
    keys = federation.keys(AGENT)
    old = {path.name: path.read_bytes() for path in keys.iterdir()}
    shutil.rmtree(keys)
    line = federation.ask("nexus-server", "invite", AGENT, "--renew")["line"]
    refused = federation.call("nexus-client", "join", stdin=line + "\n")
    assert refused.returncode == 1
    assert "other-key" in refused.stderr
    told = federation.call("nexus-server", "invite", AGENT, "--replace").stdout
    assert "plan new NAME --from PLAN" in told
    federation.ask("nexus-client", "join", stdin=told.splitlines()[0] + "\n")
    assert (keys / "identity.key").read_bytes() != old["identity.key"]
    until("the new key is known", lambda: int(str(listed(federation, AGENT)["certificate_days_left"])) > 360)
    begin(federation, "replaced")
    rounds(federation, 1)
    assert AGENT in federation.versions("replaced")[-1]["cohort"]
    federation.rest()
    federation.end(AGENT)
    new = {path.name: path.read_bytes() for path in keys.iterdir()}
    for name, data in old.items():
        (keys / name).write_bytes(data)
    federation.start(AGENT, wait=False)
    until("the old key is refused", lambda: "HTTP 404" in federation.own_log(AGENT))
    federation.end(AGENT)
    for name, data in new.items():
        (keys / name).write_bytes(data)


@pytest.mark.parametrize(("name", "ahead"), [("ahead", 90), ("behind", -400)])
def test_a_clock_that_is_minutes_off_costs_no_round(federation: Federation, name: str, ahead: int) -> None:
    plan = federation.plan(name, SITES, rounds=2, **QUICK)
    for site in set(SITES) - {AGENT}:
        simulated = SimSite(site, plan, certs.load_identity(federation.keys(site) / "identity.key"))
        federation.link(site, simulated)
    federation.start(AGENT, program=[sys.executable, str(Path(__file__).with_name("skewed_agent.py")), str(ahead)])
    federation.train(plan, approved_by=[AGENT])
    until("the run ends", lambda: federation.server_status()["state"] == "finished")
    assert all(AGENT in version["cohort"] for version in federation.versions(name)[1:])
    assert "HTTP 401" in federation.own_log(AGENT), "the first try was signed by the wrong clock"


def test_a_revoked_site_is_out_at_once_in_the_middle_of_a_round_and_may_come_again(federation: Federation) -> None:
    asked: list[float] = []

    class Slow(SimSite):
        def __call__(self, message: wire.Message) -> wire.Message:
            if isinstance(message, wire.TrainRound) and not asked:
                asked.append(time.monotonic())
                time.sleep(3)
            return super().__call__(message)

    plan = federation.plan("revoked", SITES, rounds=1000, round_deadline_seconds=60.0, **QUICK)
    for site in SITES:
        kind = Slow if site == "bank-b" else SimSite
        federation.link(site, kind(site, plan, certs.load_identity(federation.keys(site) / "identity.key")))
    federation.train(plan, approved_by=())
    until("it trains", lambda: asked)
    told = federation.ask("nexus-server", "revoke", "bank-b")
    assert "bank-b" not in {line["site"] for line in told["sites"]}
    until("the run waits", lambda: federation.server_status()["phase"] == "waiting", 20)
    assert federation.server_status()["missing"] == ["bank-b"]
    until("it is refused", lambda: "HTTP 404" in federation.links["bank-b"].state, 20)
    assert [
        entry["site"] for entry in federation.ask("nexus-server", "audit")["entries"] if entry["event"] == "revoked"
    ]
    again = federation.call("nexus-server", "revoke", "bank-b")
    assert again.returncode == 1
    assert "not enrolled" in again.stderr
    federation.ask("nexus-client", "join", federation.ask("nexus-server", "invite", "bank-b")["line"])
    until("it is back, with the keys that it had", lambda: federation.links["bank-b"].state == "connected")
    done = federation.server_status()["round"]
    until("the run goes on", lambda: federation.server_status()["round"] > done)
    assert "met a fault" not in federation.log("server")
