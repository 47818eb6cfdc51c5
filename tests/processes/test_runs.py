"""A server and three agents that embed, train and judge real text, and what kill -9 does to them."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from nexus_client.sensors import powers, temperatures
from nexus_common import __version__
from nexus_common.errors import REFUSALS
from nexus_common.plan import Plan
from nexus_server.gate import FLEET_PATHS

from tests.processes.harness import Federation, until
from tests.processes.metrics_table import differences

pytestmark = pytest.mark.processes
Sites = tuple[str, ...]
SITES = ("bank-a", "hospital-a", "hospital-b")
FOUR = (*SITES, "bank-b")
QUICK = {"local": {"steps": 5, "batch_rows": 8}, "adapter": {"salience": False}}
SLOW = {"local": {"steps": 200, "batch_rows": 16}, "adapter": {"salience": False}}


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*FOUR, rows=60)
        made.start_all(FOUR)
        yield made


@pytest.fixture(autouse=True)
def rest_afterwards(federation: Federation) -> Iterator[None]:
    yield
    federation.rest()


def plan(federation: Federation, name: str, rounds: int, recipe: dict[str, Any], sites: Sites = SITES) -> Plan:
    return federation.plan(name, sites, rounds=rounds, **recipe)


def finished(federation: Federation, run: str) -> bool:
    status = federation.server_status()
    assert status["run"] == run
    return bool(status["state"] == "finished")


def training(federation: Federation, at_least: int) -> Any:
    """The status while a round after ``at_least`` finished ones is being trained."""

    def now() -> Any:
        status = federation.server_status()
        assert status["state"] == "running", status
        return status if status["phase"] == "training" and status["round"] >= at_least else None

    return until("a round is being trained", now)


def version_of(federation: Federation, site: str) -> int:
    return int(federation.site_status(site)["version"])


def test_a_run_gives_every_site_its_last_version_and_figures_for_it(federation: Federation) -> None:
    federation.train(plan(federation, "first", 3, {"local": QUICK["local"]}))  # with salience
    until("the run ends", lambda: finished(federation, "first"))
    assert [v["number"] for v in federation.versions("first")] == [0, 1, 2, 3]
    assert all(v["cohort"] == list(SITES) for v in federation.versions("first") if v["number"])
    for site in SITES:
        until(
            f"{site} has version 3",
            lambda s=site: federation.site_status(s)["version"] == 3,
        )
    report = federation.ask("nexus-client", "evaluate", "--site", "bank-a")
    shown = {(line["model"], line["metric"]) for line in report["lines"]}
    models = ("keyword", "base", "alone", "federated", "personal", "in use")
    assert shown == {(m, k) for m in models for k in ("nDCG@10", "MRR@10")}
    assert (report["run"], report["version"], report["rows"]) == ("first", 3, 60)
    sites = federation.ask("nexus-server", "sites")
    told = [(line["standing"], line["readiness"]) for line in sites["sites"]]
    took_part = ("first: approved", "ready")
    assert told == [took_part, (None, None), took_part, took_part]


def test_metrics_are_those_of_the_table_and_say_what_the_run_came_to(federation: Federation) -> None:
    told = {name: federation.metrics(name) for name in ("server", "bank-a")}
    known = {
        "project": ["consortium"],
        "site": FOUR,
        "subject": ["ca", "server", *(f"site:{site}" for site in FOUR)],
        "version": [__version__],
        "route": [*FLEET_PATHS, "other"],
        "code": [*REFUSALS, "200", "403", "404", "409"],
        "zone": list(temperatures()),
        "rail": list(powers()),
    }
    assert differences("server", told["server"], known) == []
    assert differences("client", told["bank-a"], known) == []
    assert 'rounds_total{outcome="committed",project="consortium"} 3.0\n' in told["server"]
    assert 'model_version{project="consortium",slot="judged"} 3.0\n' in told["server"]
    assert "audit_chain_valid 1.0\n" in told["server"]
    assert 'rounds_total{outcome="trained"} 3.0\n' in told["bank-a"]
    assert "training_steps_total 15.0\n" in told["bank-a"]
    sent = [re.findall(r"update_bytes_total{.*\"(?:sent|received)\".*} (\S+)", text) for text in told.values()]
    assert all(float(count) > 1e6 for found in sent for count in found)
    assert not re.search("box|question|epsilon_", "".join(told.values())), "no text"
    for name, command in (("server", ["nexus-server"]), ("bank-a", ["nexus-client", "--site", "bank-a"])):
        shown = f"metrics: http://127.0.0.1:{federation.metrics_ports[name]}/metrics"
        assert shown in federation.call(*command, "status").stdout


def test_a_site_trains_alone_without_any_run_and_its_report_draws_that(federation: Federation) -> None:
    recipe, page = federation.home / "recipe.toml", federation.home / "bank-b.html"
    recipe.write_text("rounds = 2\nlocal = { steps = 5, batch_rows = 8 }\nadapter = { salience = false }\n")
    kept = federation.ask("nexus-client", "train", "--local", "--site", "bank-b", "--plan", str(recipe))
    assert (kept["site"], kept["rounds"], kept["round"] in (0, 1, 2)) == ("bank-b", 2, True)
    (course,) = federation.ask("nexus-client", "report", "--site", "bank-b", "-o", str(page))["courses"]
    assert course["title"].startswith(f"Alone: round {kept['round']} of 2 was kept")
    assert [version["number"] for version in course["versions"]] == [0, 1]
    assert all({"loss", "score", "train_loss"} <= {*one["arms"][0]["figures"]} for one in course["versions"])
    assert "<svg" in page.read_text()


def test_kill_9_of_the_server_in_a_round_loses_no_committed_round(federation: Federation) -> None:
    federation.train(plan(federation, "crash", 1000, SLOW))
    training(federation, 1)
    before = federation.versions("crash")
    federation.kill("server")
    federation.start("server")
    until("it goes on", lambda: federation.server_status()["round"] > len(before))
    federation.ask("nexus-server", "stop", "crash")
    until("it stops", lambda: federation.server_status()["state"] == "stopped")
    after = federation.versions("crash")
    assert [v["hash"] for v in after[: len(before)]] == [v["hash"] for v in before]
    assert [v["number"] for v in after] == list(range(len(after)))


def test_kill_9_of_a_site_in_training_costs_its_update_only_and_it_comes_back(federation: Federation) -> None:
    federation.train(plan(federation, "site-dies", 1000, SLOW, FOUR))  # longer than any restart takes
    training(federation, 1)
    assert federation.versions("site-dies")[1]["cohort"] == sorted(FOUR)
    federation.kill("hospital-b")
    others = ["bank-a", "bank-b", "hospital-a"]
    until("a round without it", lambda: federation.versions("site-dies")[-1]["cohort"] == others)
    federation.start("hospital-b")
    until("a round with it", lambda: federation.versions("site-dies")[-1]["cohort"] == sorted(FOUR))
    federation.ask("nexus-server", "stop", "site-dies")
    until("it stops", lambda: federation.server_status()["state"] == "stopped")
    last = federation.server_status()["round"]
    assert [v["number"] for v in federation.versions("site-dies")] == list(range(last + 1))
    until("it has the last version", lambda: version_of(federation, "hospital-b") == last)


def test_below_the_quorum_the_run_waits_and_says_for_whom_since_when(federation: Federation) -> None:
    federation.train(plan(federation, "waits", 1000, QUICK))
    training(federation, 1)
    assert federation.end("hospital-b") == 0
    until("it waits", lambda: federation.server_status()["phase"] == "waiting")
    assert federation.server_status()["missing"] == ["hospital-b"]
    printed = federation.call("nexus-server", "status").stdout
    assert "waiting for hospital-b since 20" in printed
    assert "with 3 sites nobody can be spared; nothing is lost" in printed
    reached = federation.server_status()["round"]
    federation.start("hospital-b")
    until("it goes on", lambda: federation.server_status()["round"] > reached)


def test_stop_ends_a_run_after_its_round_and_train_resumes_it(federation: Federation) -> None:
    federation.train(plan(federation, "stops", 1000, SLOW))
    training(federation, 1)
    refused = federation.call("nexus-server", "stop", "other")
    assert refused.returncode == 1
    assert "stops is" in refused.stderr
    federation.ask("nexus-server", "stop", "stops")
    until("it stops", lambda: federation.server_status()["state"] == "stopped")
    reached = federation.server_status()["round"]
    assert 1 <= reached < 1000
    changed = federation.write_plan(plan(federation, "stops", 5, QUICK))
    refused = federation.call("nexus-server", "train", str(changed))
    assert refused.returncode == 1
    assert "rounds" in refused.stderr
    assert "another name" in refused.stderr
    federation.ask("nexus-server", "train", "stops", "--detach")
    until("it goes on", lambda: federation.server_status()["round"] > reached)


def test_a_plan_with_a_site_that_is_not_enrolled_is_refused_by_name(federation: Federation) -> None:
    path = federation.write_plan(plan(federation, "typo", 2, QUICK))
    path.write_text(path.read_text().replace("hospital-b", "hospital-c"))
    refused = federation.call("nexus-server", "train", str(path))
    assert refused.returncode == 1
    assert "not enrolled: hospital-c; did you mean 'hospital-" in refused.stderr


def test_a_second_agent_of_a_site_is_refused(federation: Federation) -> None:
    second = federation.call("nexus-client", "--site", "bank-a")
    assert second.returncode == 1
    assert "another nexus-client for bank-a already runs" in second.stderr


def test_a_site_that_refuses_a_run_says_why_at_home_and_only_a_code_to_the_server(federation: Federation) -> None:
    federation.train(plan(federation, "other-base", 2, QUICK | {"base_model": "0" * 64}))
    until(
        "the sites refuse",
        lambda: (
            [s["readiness"] for s in federation.ask("nexus-server", "sites")["sites"] if s["site"] in SITES]
            == ["refused: unknown-base-model"] * 3
        ),
    )
    assert "set base_model in site.toml" in federation.log("bank-a")
    federation.ask("nexus-server", "stop", "other-base")


def test_both_programs_end_on_sigterm_with_exit_code_0(federation: Federation) -> None:
    assert federation.end("bank-a") == 0
    assert federation.end("server") == 0
