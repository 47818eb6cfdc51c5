"""Plans and people, each test a story: who must say yes, what a no does, and how a consortium changes."""

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nexus_common.versions import StoredAdapter

from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES = ("bank-a", "hospital-a", "hospital-b")
FOUR = (*SITES, "bank-b")
QUICK = "[local]\nsteps = 5\nbatch_rows = 8\n[adapter]\nsalience = false\n"
SLOW = {"local": {"steps": 400, "batch_rows": 16}, "adapter": {"salience": False}}
FAST = {"local": {"steps": 5, "batch_rows": 8}, "adapter": {"salience": False}}


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


def new_plan(federation: Federation, name: str, *options: str) -> str:
    """``plan new`` without its dry run, and ``plan propose``; the plan's hash."""
    recipe = federation.home / "recipe.toml"
    recipe.write_text(QUICK)
    said = ["--purpose", "finding leaflets", "--end", "2099-12-31", "--recipe", str(recipe), "--clip", "8"]
    file = federation.home / f"{name}.toml"
    options = options if "--from" in options else (*said, *options)
    federation.ask("nexus-server", "plan", "new", name, "--file", str(file), *options)
    return str(federation.ask("nexus-server", "plan", "propose", str(file))["hash"])


def standings(federation: Federation, name: str) -> dict[str, tuple[str, str]]:
    plans = federation.ask("nexus-server", "plan", "status")["plans"]
    return {s["site"]: (s["state"], s["code"]) for p in plans if p["plan"] == name for s in p["sites"]}


def entries(federation: Federation, site: str, event: str) -> list[dict[str, Any]]:
    return [e for e in federation.ask("nexus-client", "audit", "--site", site)["entries"] if e["event"] == event]


def ended(federation: Federation, run: str) -> None:
    until(
        f"run {run} is finished",
        lambda: [federation.server_status()[key] for key in ("run", "state")] == [run, "finished"],
    )


def test_the_first_plan_waits_for_every_sites_people_and_runs_once_all_have_approved(federation: Federation) -> None:
    plan = new_plan(federation, "first", "--rounds", "3", "--without", "bank-b")
    federation.ask("nexus-server", "train", "first", "--detach")
    read_out = {site: federation.words(site, "first") for site in SITES}
    assert len(set(read_out.values())) == 1
    waiting = federation.server_status()
    assert (waiting["wanted"], waiting["approvals_missing"]) == ("first", list(SITES))
    for site, other in zip(SITES, [*SITES[1:], SITES[0]], strict=True):
        done = federation.approve(site, "first", read_out[other].upper(), "--ref", "2026-114")
        assert done.returncode == 0, done.stderr
        pairs = (" ".join(two) for two in pairwise(read_out[site].split()))  # single ones may stand in any sentence
        assert not any(two in done.stdout for two in pairs), "approve never prints the words"
    ended(federation, "first")
    assert standings(federation, "first") == dict.fromkeys(SITES, ("approved", ""))
    assert all(v["cohort"] == list(SITES) for v in federation.versions("first")[1:])
    policy = (federation.home / "sites" / "bank-a" / "policy.toml").read_text()
    assert plan in policy
    assert "by DPO of bank-a, 2026-114" in policy
    logged = entries(federation, "bank-a", "plan approved")
    assert [(e["plan"], e["by"], e["reference"]) for e in logged] == [(plan, "DPO of bank-a", "2026-114")]


def test_words_that_differ_are_refused_logged_and_approve_nothing(federation: Federation) -> None:
    plan = new_plan(federation, "differs", "--without", "bank-b")
    words = federation.words("hospital-a", "differs").split()
    for heard, found in (
        (" ".join([words[1], words[0], *words[2:]]), "words"),
        (" ".join(words[:11]), "11 words"),
        (" ".join([*words[:11], "hospitl"]), "did you mean 'hospital'"),
    ):
        refused = federation.approve("hospital-a", "differs", heard)
        assert refused.returncode == 1
        assert "words-differ" in refused.stderr
        assert found in refused.stderr
    assert plan not in (federation.home / "sites" / "hospital-a" / "policy.toml").read_text()
    codes = [e["code"] for e in entries(federation, "hospital-a", "refused") if e.get("plan") == plan]
    assert codes.count("words-differ") == 3
    federation.ask("nexus-server", "stop", "differs")


def test_a_server_that_shows_two_plans_is_found_out_by_the_words() -> None:
    with Federation() as federation:
        federation.server_program = [sys.executable, str(Path(__file__).with_name("two_faced_server.py"))]
        federation.found(*SITES)
        federation.start_all(SITES)
        new_plan(federation, "two-faced")
        shown = {site: federation.words(site, "two-faced") for site in SITES}
        assert shown["bank-a"] == shown["hospital-b"] != shown["hospital-a"]
        for site, other in (("hospital-a", "bank-a"), ("bank-a", "hospital-a")):
            refused = federation.approve(site, "two-faced", shown[other])
            assert refused.returncode == 1
            assert "the server has shown this site a different one" in refused.stderr


def test_a_fourth_site_joins_with_a_new_plan_while_the_old_run_goes_on(federation: Federation) -> None:
    old = federation.plan("three", SITES, rounds=1000, **FAST)
    federation.train(old)
    until("it trains", lambda: federation.server_status()["round"] >= 2)
    new_plan(federation, "four", "--from", "three", "--add", "bank-b", "--rounds", "2")
    federation.words("bank-a", "four")
    page = federation.call("nexus-client", "plan", "show", "four", "--site", "bank-a").stdout
    assert "different" in page.partition("Purpose")[0], "the page opens with the differences"
    assert "the server can compare before and after" in " ".join(page.split())
    federation.ask("nexus-server", "train", "four", "--detach")
    assert federation.server_status()["run"] == "three"
    before = federation.server_status()["round"]
    until("the old run goes on", lambda: federation.server_status()["round"] > before)
    words = federation.words("bank-b", "four")
    for site in FOUR:
        assert federation.approve(site, "four", words).returncode == 0
    ended(federation, "four")
    made = [version["hash"] for version in federation.versions("three") if version["state"] == "made"]
    assert federation.versions("four")[0]["hash"] == made[-1], "it begins at the newest for use, which no midpoint is"
    assert federation.versions("four")[-1]["cohort"] == sorted(FOUR)


def test_one_site_leaves_and_training_starts_again_from_the_version_before_it_came(federation: Federation) -> None:
    origin = federation.plan("with-b", FOUR, rounds=3, **FAST)
    federation.train(origin)
    ended(federation, "with-b")
    federation.ask("nexus-client", "leave", "--site", "bank-b", "--by", "the board")
    try:
        again = new_plan(federation, "without-b", "--from", "with-b", "--without", "bank-b", "--from-version", "1")
        federation.ask("nexus-server", "train", "without-b", "--detach")
        for site in SITES:
            federation.policy(site, approved_plans=[again])
        ended(federation, "without-b")
        assert federation.versions("without-b")[0]["hash"] == federation.versions("with-b")[1]["hash"]
        assert {tuple(v["cohort"]) for v in federation.versions("without-b")[1:]} == {SITES}
        told = {line["site"]: line["standing"] for line in federation.ask("nexus-server", "sites")["sites"]}
        assert told["bank-b"] is None, "it is in no plan any more"
    finally:
        federation.ask("nexus-client", "resume", "--site", "bank-b")


def test_consent_withdrawn_in_mid_round_fails_that_round_and_nothing_leaves(federation: Federation) -> None:
    plan = federation.plan("mid-round", SITES, rounds=5, **SLOW)
    federation.train(plan)
    until("a round is being trained", lambda: federation.server_status()["phase"] == "training")
    sent = len([e for e in entries(federation, "bank-a", "sent") if e["purpose"] == "masked"])
    done = federation.call("nexus-client", "plan", "withdraw", "--site", "bank-a", "--by", "DPO")
    assert done.returncode == 0, done.stderr
    until("the run waits for it", lambda: federation.server_status()["phase"] == "waiting")
    assert federation.server_status()["missing"] == ["bank-a"]
    until("the server knows", lambda: standings(federation, "mid-round")["bank-a"] == ("withdrawn", ""))
    assert len([e for e in entries(federation, "bank-a", "sent") if e["purpose"] == "masked"]) <= sent + 1
    assert [e["plan"] for e in entries(federation, "bank-a", "plan withdrawn")][-1] == plan.hash.hex()


def test_with_a_quorum_the_run_begins_and_the_late_approver_joins_it(federation: Federation) -> None:
    plan = federation.plan("late", FOUR, rounds=1000, start="quorum", gather_seconds=0.0, **FAST)
    plan = plan.model_copy(update={"gather_seconds": 0.0})
    federation.train(plan, approved_by=SITES)
    until("it trains without bank-b", lambda: federation.server_status()["round"] >= 2)
    assert {tuple(v["cohort"]) for v in federation.versions("late")[1:]} == {SITES}
    assert standings(federation, "late")["bank-b"] == ("pending", "")
    federation.policy("bank-b", approved_plans=[plan.hash.hex()])
    until("it trains with bank-b", lambda: federation.versions("late")[-1]["cohort"] == sorted(FOUR))


def test_a_run_that_ended_goes_on_with_twenty_more_rounds(federation: Federation) -> None:
    federation.train(federation.plan("ten", SITES, rounds=2, **FAST))
    ended(federation, "ten")
    refused = federation.call("nexus-server", "train", "ten")
    assert "plan new NAME --from ten --rounds N" in refused.stderr
    more = new_plan(federation, "ten-more", "--from", "ten", "--rounds", "20")
    federation.ask("nexus-server", "train", "ten-more", "--detach")
    for site in SITES:
        federation.policy(site, approved_plans=[more])
    ended(federation, "ten-more")
    assert [v["number"] for v in federation.versions("ten-more")] == list(range(21))
    assert federation.versions("ten-more")[0]["hash"] == federation.versions("ten")[-1]["hash"]


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"min_cohort": 4}, "cohort-too-small"),
        ({"max_clip_norm": 1.0}, "clip-bound"),
        ({"allowed_hours": "03:00-03:01"}, "outside-hours"),
        ({"accept_no_record_privacy": False}, "no-record-privacy"),
    ],
)
def test_a_policy_stricter_than_the_plan_wins_and_only_its_code_leaves(
    federation: Federation, policy: dict[str, Any], code: str
) -> None:
    kept = (federation.home / "sites" / "hospital-b" / "policy.toml").read_text()
    name = f"strict-{code}"
    federation.policy("hospital-b", **policy)
    try:
        plan = new_plan(federation, name, "--without", "bank-b")
        words = federation.words("hospital-b", name)
        refused = federation.approve("hospital-b", name, words)
        assert refused.returncode == 1
        assert code in refused.stderr
        assert next(iter(policy)) in refused.stderr, "the setting is named"
        until("the server hears the code", lambda: standings(federation, name)["hospital-b"] == ("pending", code))
        assert [e["code"] for e in entries(federation, "hospital-b", "refused") if e.get("plan") == plan] == [code]
    finally:
        (federation.home / "sites" / "hospital-b" / "policy.toml").write_text(kept)
        federation.ask("nexus-server", "stop", name)


def test_a_site_with_fewer_rows_than_its_own_minimum_stays_out(federation: Federation) -> None:
    kept = (federation.home / "sites" / "hospital-b" / "policy.toml").read_text()
    federation.policy("hospital-b", min_rows=1000)
    federation.train(federation.plan("rows", SITES, rounds=2, **FAST))
    found = lambda: {s["site"]: s["readiness"] for s in federation.ask("nexus-server", "sites")["sites"]}  # noqa: E731
    until("it refuses", lambda: found()["hospital-b"] == "refused: too-few-rows")
    (federation.home / "sites" / "hospital-b" / "policy.toml").write_text(kept)
    federation.policy("hospital-b", approved_plans=[federation.plan("rows", SITES, rounds=2, **FAST).hash.hex()])
    ended(federation, "rows")


def test_pause_stops_a_site_at_once_and_resume_brings_it_back(federation: Federation) -> None:
    federation.train(federation.plan("pauses", SITES, rounds=1000, **FAST))
    until("it trains", lambda: federation.server_status()["round"] >= 1)
    federation.ask("nexus-client", "pause", "--site", "hospital-a")
    until("it waits", lambda: federation.server_status()["missing"] == ["hospital-a"])
    until("the server knows why", lambda: standings(federation, "pauses")["hospital-a"] == ("approved", "paused"))
    assert "has paused" in federation.call("nexus-client", "status", "--site", "hospital-a").stdout
    reached = federation.server_status()["round"]
    federation.ask("nexus-client", "resume", "--site", "hospital-a")
    until("it goes on", lambda: federation.server_status()["round"] > reached)
    assert "answers HTTP 409" not in federation.own_log("hospital-a"), "a new session is no fault"


def test_a_rollback_changes_what_is_in_use_at_once_and_training_goes_on_from_between(federation: Federation) -> None:
    federation.train(federation.plan("rolls", SITES, rounds=4, **FAST))
    ended(federation, "rolls")
    until("bank-a has version 4", lambda: federation.site_status("bank-a")["version"] == 4)
    federation.ask("nexus-server", "models", "rollback", "2")
    for site in SITES:
        until(
            f"{site} has version 2",
            lambda s=site: federation.site_status(s)["version"] == 2,
        )
    states = [v["state"] for v in federation.versions("rolls")]
    assert states == ["made", "made", "made", "rolled back", "rolled back", "midpoint"]
    refused = federation.call("nexus-server", "models", "rollback", "9")
    assert "these can: 0, 1" in refused.stderr


def test_withdrawn_versions_go_out_of_use_and_their_run_cannot_go_on(federation: Federation) -> None:
    federation.train(federation.plan("taken-back", SITES, rounds=3, **FAST))
    ended(federation, "taken-back")
    refused = federation.call("nexus-server", "models", "withdraw", "1..2")
    assert "withdraw 1..3" in refused.stderr
    federation.ask("nexus-server", "models", "withdraw", "2..3")
    for site in SITES:
        until(
            f"{site} has version 1",
            lambda s=site: federation.site_status(s)["version"] == 1,
        )
    assert [v["state"] for v in federation.versions("taken-back")] == ["made", "made", "withdrawn", "withdrawn"]
    for nonsense in ("x", "3..", "..2", "9..12"):
        assert federation.call("nexus-server", "models", "withdraw", nonsense).returncode == 1


def test_both_audit_logs_are_whole_and_name_what_left(federation: Federation) -> None:
    heads = {site: federation.ask("nexus-client", "audit", "--site", site)["head"] for site in FOUR}
    for site in FOUR:
        checked = federation.call("nexus-client", "audit", "--site", site, "--verify", "--from", heads[site])
        assert checked.returncode == 0, checked.stderr
        updates = [e for e in entries(federation, site, "sent") if e["purpose"] == "masked"]
        assert {(e["recipient"], e["round"] >= 0, len(e["sha256"])) for e in updates} == {
            (f"127.0.0.1:{federation.port}", True, 64)
        }
    server = federation.ask("nexus-server", "audit")
    events = {entry["event"] for entry in server["entries"]}
    assert {"invited", "enrolled", "plan proposed", "standing", "run began", "sent", "version", "rollback"} <= events
    assert federation.call("nexus-server", "audit", "--verify", "--from", server["head"]).returncode == 0
    path = federation.home / "sites" / "bank-b" / "state" / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"event":"joined"', b'"event":"joyned"', 1))
    cheated = federation.call("nexus-client", "audit", "--site", "bank-b", "--verify")
    assert cheated.returncode == 1
    assert "line 2" in cheated.stderr
    path.write_bytes(whole)


def test_a_lost_server_is_made_again_from_a_sites_version_file_and_goes_on() -> None:
    with Federation() as federation:
        federation.found(*SITES, rows=60)
        federation.start_all(SITES)
        plan = federation.plan("survives", SITES, rounds=1000, **FAST)
        federation.train(plan)
        until("it trains", lambda: federation.server_status()["round"] >= 3)
        federation.kill("server")
        for site in SITES:
            federation.kill(site)
        (federation.home / "server").rename(federation.home / "lost")
        files = {site: federation.home / "sites" / site / "state" / "federated.safetensors" for site in SITES}
        newest = max(files.values(), key=lambda file: StoredAdapter.read(file).number)
        reached = StoredAdapter.read(newest).number
        assert reached >= 2
        federation.init("--from-version", str(newest))
        federation.start("server")
        assert federation.server_status()["round"] == reached
        for site in SITES:
            federation.ask("nexus-client", "join", stdin=federation.ask("nexus-server", "invite", site)["line"] + "\n")
        federation.start_all(SITES)
        federation.ask("nexus-server", "train", "survives", "--detach")
        until("it goes on", lambda: federation.server_status()["round"] > reached)
        assert json.loads(plan.canonical)["name"] == federation.server_status()["run"]
