"""A site's own word: each thing it forbids is refused with its code, and nothing else is changed by changing it."""

import contextlib
import datetime as dt
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.policy import TEMPLATE, Policy, change_policy, read_policy, rewrite_policy, write_policy
from nexus_common.config import parse_toml
from nexus_common.errors import Refusal
from nexus_common.plan import Plan

from tests.plans import make_plan

PLAN = make_plan("abc")
NOON = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)
OPEN: dict[str, Any] = {"accept_no_record_privacy": True, "approved_plans": (PLAN.hash.hex(),)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_policy(tmp_path / "policy.toml", "hospital-a")
    return tmp_path / "policy.toml"


@pytest.fixture
def shown() -> Iterator[Path]:
    """A policy that every account may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        write_policy(Path(folder) / "policy.toml", "hospital-a")
        yield Path(folder) / "policy.toml"


def code(plan: Plan = PLAN, now: dt.datetime = NOON, **policy: Any) -> str:
    """What is refused, or an empty word."""
    try:
        Policy(**OPEN | policy).require(plan, now)
    except Refusal as refusal:
        return refusal.code
    return ""


def noise(**more: Any) -> Plan:
    wide = {"mod_bits": 32}
    return make_plan("abc", privacy={"noise": 2.0, "sampling": 0.01, "honest": 3}, aggregation=wide, **more)


def approved(plan: Plan) -> dict[str, Any]:
    return {"plan": plan, "approved_plans": (plan.hash.hex(),)}


def test_the_written_policy_is_the_default_and_allows_no_plan_without_privacy(path: Path) -> None:
    assert read_policy(path) == Policy() == parse_toml(Policy, TEMPLATE.format(site="x"), "x")
    assert not Policy().accept_no_record_privacy


def test_an_approved_plan_within_the_policy_may_run() -> None:
    assert code() == ""


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        ({"participation": "paused"}, "paused"),
        ({"participation": "left"}, "left"),
        ({"approved_plans": ()}, "plan-not-approved"),
        ({"withdrawn_plans": (PLAN.hash.hex(),)}, "plan-withdrawn"),
        ({"min_cohort": 4}, "cohort-too-small"),
        ({"max_clip_norm": 9.9}, "clip-bound"),
        ({"accept_no_record_privacy": False}, "no-record-privacy"),
        ({"allowed_hours": "13:00-11:30"}, "outside-hours"),
        (approved(make_plan("abc", hours_utc="13:00-11:30")), "outside-hours"),
        ({"now": dt.datetime(2100, 1, 1, tzinfo=dt.UTC)}, "plan-ended"),
        (approved(noise()) | {"max_epsilon": 100.0}, "privacy-not-available"),
        (approved(noise()) | {"accept_no_record_privacy": False}, "privacy-not-available"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_policy_forbids_is_refused_with_its_code(policy: dict[str, Any], refused: str) -> None:
    assert code(**policy) == refused


def test_a_plan_must_stay_inside_of_the_allowed_hours_in_summer_and_winter(monkeypatch: pytest.MonkeyPatch) -> None:
    night = make_plan("abc", hours_utc="19:00-05:00")
    for zone, allowed, good in (
        ("UTC", "19:00-05:00", True),
        ("UTC", "19:01-05:00", False),
        ("CET-1CEST,M3.5.0,M10.5.0", "20:00-06:00", False),  # in summer the plan runs until 07:00 there
        ("CET-1CEST,M3.5.0,M10.5.0", "20:00-07:00", True),
    ):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            policy = Policy(accept_no_record_privacy=True, allowed_hours=allowed)
            with contextlib.nullcontext() if good else pytest.raises(Refusal, match="outside-hours"):
                policy.check_plan(night, NOON.date())
        finally:
            monkeypatch.undo()
            time.tzset()


def test_the_moment_must_lie_in_the_plans_and_in_the_allowed_hours() -> None:
    ahead = int((dt.datetime.now().astimezone().utcoffset() or dt.timedelta()).total_seconds() // 60)
    night = make_plan("abc", hours_utc="22:00-02:00")
    allowed = str(night.hours.shifted(ahead))
    local = dt.timezone(dt.timedelta(minutes=ahead))
    inside, outside = (dt.datetime(2026, 11, 25, hour, 0, tzinfo=dt.UTC).astimezone(local) for hour in (23, 12))
    assert code(**approved(night), now=inside, allowed_hours=allowed) == ""
    assert code(**approved(night), now=outside) == "outside-hours", "the plan's own hours"
    assert code(now=outside, allowed_hours=allowed) == "outside-hours", "the site's hours"


@pytest.mark.parametrize(("most", "allowed"), [(None, True), (2.0, True), (1.99, False)])
def test_an_epsilon_above_the_sites_own_bound_is_refused(most: float | None, allowed: bool) -> None:
    policy = Policy(max_epsilon=most)
    if allowed:
        policy.check_epsilon(noise(), 2.0)
        return
    with pytest.raises(Refusal, match=r"epsilon-bound: .*epsilon 2\.00, this site allows 1\.99"):
        policy.check_epsilon(noise(), 2.0)


@pytest.mark.parametrize(
    "text", ["min_cohort = 2", "min_chort = 3", "approved_plans = ['x']", "allowed_hours = 'night'", "\x00"]
)
def test_a_faulty_policy_allows_nothing(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(Refusal, match=r"policy-invalid: .*policy\.toml"):
        read_policy(path)


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b"\xff"), lambda path: (path.unlink(), path.mkdir())]
)
def test_a_policy_that_cannot_be_read_allows_nothing(path: Path, spoil: Any) -> None:
    spoil(path)
    with pytest.raises(Refusal, match="policy-invalid"):
        read_policy(path)


@given(st.text())
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.toml"
        path.write_text(text, errors="replace")
        try:
            read_policy(path)
        except Refusal as refusal:
            assert refusal.code == "policy-invalid"


def test_changing_a_setting_keeps_all_others_and_every_comment(path: Path) -> None:
    text = path.read_text().replace("min_rows = 10 ", "min_rows = 77 ") + "# our own remark\n"
    path.write_text(text)
    change_policy(path, "first, approved by Dr X", approved_plans=["ab" * 32])
    assert (read_policy(path).min_rows, read_policy(path).approved_plans) == (77, ("ab" * 32,))
    assert "# first, approved by Dr X" in path.read_text()
    change_policy(path, approved_plans=[])
    assert path.read_text() == text


def test_changes_at_the_same_time_lose_nothing(path: Path) -> None:
    def add(number: int) -> None:
        rewrite_policy(path, lambda policy: {"withdrawn_plans": [*policy.withdrawn_plans, f"{number:064x}"]})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_policy(path).withdrawn_plans) == [f"{number:064x}" for number in range(12)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try another account")
def test_whoever_may_only_read_the_policy_cannot_hold_it_against_a_change(shown: Path) -> None:
    change_policy(shown, min_rows=2)
    hold = (
        "import fcntl, os, sys, time\n"
        "os.setuid(65534)\n"
        "for one in (sys.argv[1], *(os.path.join(sys.argv[1], name) for name in os.listdir(sys.argv[1]))):\n"
        "    try: fcntl.flock(os.open(one, os.O_RDONLY), fcntl.LOCK_EX)\n"
        "    except PermissionError: pass\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold, shown.parent], stdout=subprocess.PIPE) as hijacked:
        assert hijacked.stdout is not None and hijacked.stdout.readline() == b"held\n"
        changing = threading.Thread(target=change_policy, args=(shown,), kwargs={"min_rows": 3}, daemon=True)
        changing.start()
        changing.join(10)
        waits = changing.is_alive()
        hijacked.kill()
    assert not waits
    assert read_policy(shown).min_rows == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another account's folder")
def test_a_change_by_root_locks_the_folders_owner_not_out(shown: Path) -> None:
    os.chown(shown.parent, 65534, 65534)
    change_policy(shown, min_rows=3)
    lock = (shown.parent / ".lock").stat()
    assert (lock.st_uid, lock.st_mode & 0o777) == (65534, 0o600)


def test_a_changed_policy_keeps_its_mode(path: Path) -> None:
    path.chmod(0o640)
    change_policy(path, min_rows=3)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_comment_cannot_become_a_setting(path: Path) -> None:
    change_policy(path, "# ] accept_no_record_privacy = true", approved_plans=["ab" * 32])
    assert not read_policy(path).accept_no_record_privacy
