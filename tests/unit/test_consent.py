"""Plans at a site: shown only with its own key, approved only by their words, and every answer in the log."""

import os
import tempfile
from pathlib import Path

import pytest
from nexus_client import consent as module
from nexus_client.consent import KEPT_PROPOSALS, Consent
from nexus_client.policy import change_policy, write_policy
from nexus_client.site import SiteHome
from nexus_common import audit, certs, wire
from nexus_common.errors import NexusError, Refusal
from nexus_common.plan import Plan, hash_of
from nexus_common.plan_words import plan_words

from tests.plans import identity_of, make_plan, of_another_release

SERVICE = 65534


@pytest.fixture
def consent(tmp_path: Path) -> Consent:
    place = SiteHome.of(tmp_path, "a")
    place.keys.mkdir(parents=True)
    certs.save_key(place.keys / "identity.key", identity_of("a"))
    write_policy(place.policy_file, "a")
    change_policy(place.policy_file, accept_no_record_privacy=True)
    return Consent(place)


@pytest.fixture(autouse=True)
def quick_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real comparison costs 128 MiB and half a second; it has tests of its own."""

    def check(typed: str, plan_hash: bytes) -> None:
        if typed != plan_hash.hex():
            raise Refusal("words-differ")

    monkeypatch.setattr(module, "check_words", check)


def plan(name: str = "first", **settings: object) -> Plan:
    return make_plan("abc", name=name, **settings)


def events(consent: Consent) -> list[str]:
    return [line["event"] for line in audit.read(consent.place.audit_file)]


def test_a_proposal_is_kept_and_logged_once(consent: Consent) -> None:
    for _ in range(3):
        consent.offer(plan().canonical)
    assert consent.proposals() == [plan()]
    assert events(consent) == ["plan proposed"]


@pytest.mark.parametrize("names", ["bcd", "abc"])
def test_a_plan_without_this_sites_name_and_key_is_never_shown(consent: Consent, names: str) -> None:
    stranger = make_plan(names).model_dump(mode="json")
    for member in stranger["sites"]:
        if member["name"] == "a":
            member["key"] = "00" * 32
    with pytest.raises(Refusal, match="own-cert"):
        consent.offer(Plan.model_validate(stranger, strict=False).canonical)
    assert consent.proposals() == []


def test_only_the_newest_proposals_are_kept_and_the_approved_one(consent: Consent) -> None:
    consent.offer(plan().canonical)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    for number in range(KEPT_PROPOSALS + 3):
        consent.offer(plan(f"spam-{number}").canonical)
    assert len(consent.proposals()) == KEPT_PROPOSALS + 1
    assert consent.approved() == plan()


def test_words_that_differ_approve_nothing_and_are_logged(consent: Consent) -> None:
    consent.offer(plan().canonical)
    with pytest.raises(Refusal, match="words-differ"):
        consent.approve(plan(), "other", "Dr X", None)
    assert consent.policy.approved_plans == ()
    assert events(consent)[-1] == "refused"


def test_the_words_that_are_compared_are_the_plans_own(consent: Consent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    consent.approve(plan(), " ".join(plan_words(plan().hash)), "Dr X", "7")
    assert consent.policy.approved_plans == (plan().hash.hex(),)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try another account")
def test_an_account_that_cannot_change_the_policy_approves_nothing_and_logs_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:  # which every account may enter
        Path(folder).chmod(0o755)
        place = SiteHome("a", Path(folder) / "etc", Path(folder) / "var")
        for one in (place.settings_folder, place.keys):
            one.mkdir(parents=True)
        certs.save_key(place.keys / "identity.key", identity_of("a"))
        write_policy(place.policy_file, "a")
        change_policy(place.policy_file, accept_no_record_privacy=True)
        (consent := Consent(place)).offer(plan().canonical)
        for path in (place.state, *place.state.rglob("*")):
            os.chown(path, SERVICE, SERVICE)
        os.seteuid(SERVICE)
        try:
            for change in (
                lambda: consent.check(plan()),  # before a person is asked for the words
                lambda: consent.approve(plan(), plan().hash.hex(), "Dr X", None),
                lambda: consent.participate("paused", "Dr X"),
            ):
                with pytest.raises(NexusError, match=r"cannot be changed by this account.* \(uid 0\)"):
                    change()
        finally:
            os.seteuid(0)
        assert events(consent) == ["plan proposed"]


def test_an_approval_ends_the_one_before_it(consent: Consent) -> None:
    first, second = plan(), plan("second")
    for one in (first, second):
        consent.offer(one.canonical)
        consent.approve(one, one.hash.hex(), "Dr X", None)
    assert consent.approved() == second
    with pytest.raises(Refusal, match="plan-not-approved"):
        consent.require(first)
    consent.require(second)


def test_what_the_policy_forbids_cannot_be_approved_and_is_logged(consent: Consent) -> None:
    change_policy(consent.place.policy_file, max_clip_norm=1.0)
    with pytest.raises(Refusal, match="clip-bound"):
        consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    assert [line["code"] for line in audit.read(consent.place.audit_file)] == ["clip-bound"]


def test_a_withdrawal_that_could_not_be_logged_is_logged_when_it_is_made_again(consent: Consent) -> None:
    consent.offer(plan().canonical)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    kept = consent.place.audit_file.rename(consent.place.audit_file.with_suffix(".moved"))
    consent.place.audit_file.mkdir()
    with pytest.raises(NexusError):
        consent.withdraw("first", "Dr Y", None)
    consent.place.audit_file.rmdir()
    kept.rename(consent.place.audit_file)
    consent.withdraw("first", "Dr Y", None)
    assert events(consent)[-1] == "plan withdrawn"


def test_a_withdrawal_counts_at_once_and_may_be_taken_back(consent: Consent) -> None:
    consent.offer(plan().canonical)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    assert consent.withdraw(None, "Dr Y", "8") == "first"
    with pytest.raises(Refusal, match="plan-withdrawn"):
        consent.require(plan())
    assert consent.standing(plan()) == (wire.WITHDRAWN, "")
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    consent.require(plan())


def test_what_was_never_approved_cannot_be_withdrawn(consent: Consent) -> None:
    consent.offer(plan().canonical)
    for asked in (None, "first", plan().hash.hex()):
        with pytest.raises(NexusError, match="nothing to withdraw"):
            consent.withdraw(asked, "Dr Y", None)
    assert consent.standing(plan()) == (wire.PENDING, "")


def test_an_approval_is_withdrawn_whatever_else_is_proposed_under_its_name(consent: Consent) -> None:
    consent.offer(plan().canonical)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    consent.offer(plan(rounds=99).canonical)
    consent.withdraw("first", "Dr Y", None)
    assert consent.policy.withdrawn_plans == (plan().hash.hex(),)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    for path in (consent.place.state / "plans").iterdir():
        path.unlink()
    consent.withdraw(plan().hash.hex()[:8], "Dr Y", None)
    assert consent.policy.approved_plans == ()


def test_too_little_noise_for_the_policy_cannot_be_approved(consent: Consent) -> None:
    noise = {"noise": 2.0, "sampling": 0.01, "honest": 3}
    noisy = plan(privacy=noise, aggregation={"mod_bits": 32})
    change_policy(consent.place.policy_file, max_epsilon=0.001)
    with pytest.raises(Refusal, match="epsilon-bound"):
        consent.check(noisy)
    quiet = plan(privacy=noise | {"noise": 0.01}, aggregation={"mod_bits": 32}, rounds=100_000)
    with pytest.raises(Refusal, match=r"epsilon-bound: .* spends epsilon inf"):
        consent.check(quiet)  # at once: nobody waits for minutes
    change_policy(consent.place.policy_file, max_epsilon=1000.0)
    with pytest.raises(Refusal, match="privacy-not-available"):
        consent.check(noisy)


def test_a_withdrawal_does_not_wait_for_the_log(consent: Consent) -> None:
    consent.offer(plan().canonical)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    consent.place.audit_file.unlink()
    consent.place.audit_file.mkdir()
    with pytest.raises(NexusError):
        consent.withdraw(None, "Dr Y", None)
    with pytest.raises(Refusal, match="plan-withdrawn"):
        consent.require(plan())


def test_what_cannot_be_logged_is_not_approved(consent: Consent) -> None:
    consent.place.audit_file.mkdir()
    with pytest.raises(NexusError):
        consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    assert consent.policy.approved_plans == ()


def test_leaving_ends_every_approval(consent: Consent) -> None:
    consent.offer(plan().canonical)
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    consent.participate("left", "the board")
    assert consent.standing(plan()) == (wire.PENDING, "left")
    consent.participate("active", "the board")
    assert consent.standing(plan()) == (wire.PENDING, "")
    assert events(consent)[-2:] == ["participation left", "participation active"]


def test_where_a_site_stands_comes_with_what_its_policy_objects_to(consent: Consent) -> None:
    assert consent.standing(plan()) == (wire.PENDING, "")
    change_policy(consent.place.policy_file, approved_plans=[plan().hash.hex()], participation="paused")
    assert consent.standing(plan()) == (wire.APPROVED, "paused")
    consent.place.policy_file.write_text("nonsense")
    assert consent.standing(plan()) == (wire.PENDING, "policy-invalid")


def test_a_plan_is_found_by_name_by_hash_or_as_the_newest(consent: Consent) -> None:
    with pytest.raises(NexusError, match="has proposed no plan yet"):
        consent.find(None)
    consent.offer(plan().canonical)
    consent.offer(plan("second").canonical)
    assert consent.find("first") == consent.find(plan().hash.hex()[:8]) == plan()
    assert consent.find(None) == plan("second")
    with pytest.raises(NexusError, match="there is: second, first"):
        consent.find("third")


def test_a_damaged_proposal_is_none_and_is_taken_again(consent: Consent) -> None:
    consent.offer(plan().canonical)
    (path,) = (consent.place.state / "plans").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert consent.proposals() == []
    with pytest.raises(Refusal, match="plan-not-approved"):
        consent.plan(plan().hash)
    consent.offer(plan().canonical)
    assert consent.plan(plan().hash) == plan()


def test_with_a_policy_that_cannot_be_read_no_proposal_is_kept(consent: Consent) -> None:
    consent.place.policy_file.write_text("nonsense")
    for number in range(3):
        with pytest.raises(Refusal, match="policy-invalid"):
            consent.offer(plan(f"spam-{number}").canonical)
    assert consent.proposals() == []


def approve_in_another_release(consent: Consent) -> None:
    old = of_another_release(plan())
    consent.offer(plan().canonical)
    kept = consent.place.state / "plans" / f"{hash_of(old).hex()}.json"
    kept.write_bytes(old)
    change_policy(consent.place.policy_file, approved_plans=[kept.stem])


def test_an_approval_that_an_update_ended_is_said_with_the_remedy_until_the_plan_is_approved_again(
    consent: Consent,
) -> None:
    assert consent.outdated() is None
    approve_in_another_release(consent)
    assert consent.approved() is None
    assert consent.standing(plan()) == (wire.PENDING, "")
    told = consent.outdated()
    assert told is not None
    assert "plan first was approved here under another release" in told
    assert "nexus-client plan approve`" in told
    consent.approve(plan(), plan().hash.hex(), "Dr X", None)
    assert consent.outdated() is None


def test_a_kept_plan_that_was_changed_is_no_approval_of_another_release(consent: Consent) -> None:
    approve_in_another_release(consent)
    (number,) = consent.policy.approved_plans
    (consent.place.state / "plans" / f"{number}.json").write_bytes(b"{}")
    assert consent.outdated() is None


def test_a_plan_from_a_server_of_another_release_is_refused_with_that_word(consent: Consent) -> None:
    with pytest.raises(Refusal, match="another release of NEXUS"):
        consent.offer(of_another_release(plan()))
