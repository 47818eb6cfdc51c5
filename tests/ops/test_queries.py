"""Every query of the dashboards and every rule, at a real Prometheus that watched a real federation."""

import re
from collections.abc import Iterator

import pytest

from tests.ops.scraper import Scraper
from tests.ops.shipped import DASHBOARDS, METRIC, NOT_YET, asked, dashboard, measured
from tests.ops.tools import tool
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]  # the first test waits for the federation's rounds
PATIENCE = 240.0
SITES = ("bank-a", "hospital-a", "hospital-b")
QUICK = {"local": {"steps": 100, "batch_rows": 8}, "adapter": {"salience": False}}
WAITS = "nexus_server_plan_approvals_missing"
OF_MACHINES = {f"nexus_client_{name}" for name in ("gpu_memory_used_bytes", "temperature_celsius", "power_watts")}
"""What not every machine has."""
QUERIES = [pytest.param(query.text, id=query.place) for query in (*asked(), *measured())]


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        yield made


@pytest.fixture(scope="module")
def watched(federation: Federation) -> Iterator[Scraper]:
    """Three rounds in which training is seen, a run that every site refuses, a plan that none has approved."""
    program = tool("prometheus", "prometheus")
    federation.found(*SITES)
    ports = dict(federation.metrics_ports)
    targets = {"nexus-server": {"": ports.pop("server")}, "nexus-client": ports}
    with Scraper(program, federation.home, targets) as scraper:
        federation.start_all(SITES)
        federation.train(federation.plan("good", SITES, rounds=3, **QUICK))
        until("the run ends", lambda: federation.server_status()["state"] == "finished", PATIENCE)
        federation.train(federation.plan("refused", SITES, rounds=1, base_model="0" * 64))
        until("the server waits", lambda: federation.server_status()["phase"] == "waiting")
        until("Prometheus saw refusals", lambda: len(scraper.samples(_refusals("server"))) > 3)
        until("Prometheus saw refusals at sites", lambda: len(scraper.samples(_refusals("client"))) > 3)
        federation.ask("nexus-server", "stop", "refused")
        federation.ask("nexus-server", "plan", "propose", str(federation.write_plan(federation.plan("waits", SITES))))
        until("Prometheus saw a plan that waits", lambda: len(scraper.samples(WAITS)) > 0)
        federation.ask("nexus-server", "stop", "waits")
        yield scraper


def _refusals(program: str) -> str:
    return f'nexus_{program}_refusals_total{{code="unknown-base-model"}} > 0'


@pytest.mark.parametrize("text", QUERIES)
def test_a_query_answers_with_numbers_or_asks_for_what_does_not_exist_here(text: str, watched: Scraper) -> None:
    missing = set(METRIC.findall(text)) - set(watched.ask("label/__name__/values"))
    assert missing <= NOT_YET | OF_MACHINES
    assert bool(watched.samples(text)) == (not missing)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_what_a_dashboard_lets_choose_among_is_there(name: str, federation: Federation, watched: Scraper) -> None:
    (choice,) = [one for one in dashboard(name)["templating"]["list"] if one["type"] == "query"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", choice["query"])
    assert found is not None
    metric, label = found.groups()
    assert label == choice["name"]
    expected = list(SITES) if label == "site" else [f"127.0.0.1:{federation.metrics_ports['server']}"]
    assert watched.ask(f"label/{label}/values", **{"match[]": metric}) == expected


def test_all_rules_are_evaluated_without_a_fault_and_nothing_fires_at_a_federation_that_is_well(
    watched: Scraper,
) -> None:
    told = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in told} == {"ok"}
    assert watched.alerts("firing") == set()


def test_a_server_and_an_agent_that_die_are_noticed(federation: Federation, watched: Scraper) -> None:
    federation.kill("server")
    federation.kill("bank-a")
    until("both alerts wait", lambda: watched.alerts("pending") >= {"NexusServerDown", "NexusAgentDown"})
