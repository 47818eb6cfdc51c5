"""The key that every site pins is replaced in mid-run; nobody pastes a line, and a box that was off follows later."""

import hashlib
from collections.abc import Iterator

import pytest
from cryptography import x509
from nexus_client.certificate import renew
from nexus_client.link import Handler
from nexus_client.site import SiteHome
from nexus_common import certs, wire

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES, AGENT = ("bank-a", "bank-b", "hospital-a"), "hospital-a"


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES, rows=60)
        yield made


def following(federation: Federation, site: str, handle: Handler) -> Handler:
    """A simulated site that takes certificates as the agent does."""

    def answer(message: wire.Message) -> wire.Message:
        if not isinstance(message, wire.Certify):
            return handle(message)
        renew(message.certificate, message.authorities, SiteHome.of(federation.home / "sites", site))
        federation.links[site].take_certificate()
        return wire.Certified(hashlib.sha256(message.certificate).digest())

    return answer


def rounds(federation: Federation, more: int) -> None:
    """Wait until so many more rounds are done, the last with all sites."""
    done = len(federation.versions("rotated"))
    until(f"{more} more rounds", lambda: len(federation.versions("rotated")) >= done + more)
    until("with all sites", lambda: federation.versions("rotated")[-1]["cohort"] == list(SITES))


def test_the_cas_key_is_replaced_in_mid_run_and_every_site_follows(federation: Federation) -> None:
    keys, ca = federation.keys(AGENT), federation.home / "server" / "keys" / "ca.crt"
    recipe = {"local": {"steps": 5, "batch_rows": 8}, "adapter": {"salience": False}}
    plan = federation.plan("rotated", SITES, rounds=1000, gather_seconds=5.0, **recipe)
    for site in SITES[:2]:
        simulated = SimSite(site, plan, certs.load_identity(federation.keys(site) / "identity.key"))
        federation.link(site, following(federation, site, simulated))
    federation.start(AGENT)
    federation.train(plan, approved_by=[AGENT])
    rounds(federation, 1)
    federation.end(AGENT)  # it is off while the key is replaced
    old, line = ca.read_bytes(), federation.ask("nexus-server", "invite", "hospital-x")["line"]
    said = federation.call("nexus-server", "rotate-ca")
    assert said.returncode == 0, said.stderr
    assert "invite again: hospital-x" in said.stdout
    stale = federation.call("nexus-client", "join", stdin=line + "\n")
    assert stale.returncode == 1, "an old line pins the old key"
    pinned = [federation.keys(site) / "ca.crt" for site in SITES[:2]]
    until("the others pin the new key", lambda: all(path.read_bytes() != old for path in pinned))
    assert federation.ask("nexus-server", "sites")["ca_overlap"]
    assert (keys / "ca.crt").read_bytes() == old
    assert federation.call("nexus-client", "check", "--site", AGENT).returncode == 0
    federation.start(AGENT)
    until("it pins the new key too", lambda: (keys / "ca.crt").read_bytes() != old)
    until("the old key is forgotten", lambda: not federation.ask("nexus-server", "sites")["ca_overlap"])
    rounds(federation, 1)
    federation.kill("server")
    federation.start("server")
    rounds(federation, 1)
    assert ca.read_bytes() == (keys / "ca.crt").read_bytes() == pinned[0].read_bytes()
    events = [entry["event"] for entry in federation.ask("nexus-server", "audit")["entries"]]
    assert events.count("certificate renewed") == len(SITES)
    federation.ask("nexus-server", "audit", "--verify")
    own = federation.ask("nexus-client", "audit", "--site", AGENT)["entries"]
    pins = [entry["consortium"] for entry in own if entry["event"] in ("joined", "certificate renewed")]
    assert pins == [certs.key_hash(x509.load_pem_x509_certificate(pem)).hex() for pem in (old, ca.read_bytes())]
    federation.ask("nexus-client", "audit", "--site", AGENT, "--verify")


def test_a_distrusted_key_lets_nobody_in_until_each_site_has_joined_again(federation: Federation) -> None:
    assert federation.call("nexus-server", "rotate-ca", "--distrust").returncode == 0
    assert not federation.ask("nexus-server", "sites")["ca_overlap"]
    federation.end(AGENT)
    federation.start(AGENT, wait=False)
    until("it is refused", lambda: "again in" in federation.own_log(AGENT))
    checked = federation.call("nexus-client", "check", "--site", AGENT)
    assert f"invite {AGENT} --renew" in checked.stdout
    line = federation.ask("nexus-server", "invite", AGENT, "--renew")["line"]
    federation.ask("nexus-client", "join", stdin=line + "\n")
    until("the agent is let in without a restart", lambda: federation.connected(AGENT))
