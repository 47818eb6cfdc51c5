"""A site's answers to the server: its policy is asked at each message, and what it stores or sends is logged first."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_client import receiving
from nexus_client import rounds as module
from nexus_client.consent import Consent
from nexus_client.held_out import HeldOut
from nexus_client.model_list import Gone
from nexus_client.policy import change_policy, write_policy
from nexus_client.record import ProtocolRecord
from nexus_client.rounds import SiteRounds
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.workspace import Workspace
from nexus_common import audit, certs, tail, wire
from nexus_common.errors import NexusError, Refusal
from nexus_common.holdings import unpack_holdings
from nexus_common.layout import Layout
from nexus_common.plan import Plan
from nexus_common.secagg import codec
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.plan import ProtocolPlan
from nexus_common.secagg.server import Server
from nexus_common.stages import moved
from nexus_common.versions import StoredAdapter, trained_from, vector_hash
from prometheus_client import generate_latest

from tests.plans import identity_of, make_plan
from tests.processes.volume import needs_root, volume
from tests.protocol.vectors import MemoryRecord

QUICK = {"adapter": {"salience": False}, "local": {"steps": 1, "batch_rows": 2}}
PLAN = make_plan("abc", **QUICK)
GROWING = make_plan("abc", **QUICK | {"name": "growing", "growth": {"candidates": ["projection"]}})
TRIAL = len(GROWING.stages) - 1
FIRST = wire.pack(PLAN.adapter.layout.first_vector(PLAN.adapter.seed_bytes))
LATER, OTHER, NEXT = (wire.pack(np.full(PLAN.adapter.layout.dim, value, np.float32)) for value in (0.01, 0.02, 0.03))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The one loading of the encoder."""
    folder = tmp_path_factory.mktemp("site")
    rows = [{"query": f"where is the cup {i}", "passage": f"cup {i} is in room {i}"} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"site": "a", "server": "127.0.0.1:1", "data": [{"path": str(folder / "rows.jsonl")}], "holdout_share": 0}
    made = Workspace(SiteHome("a", folder, folder / "state"), SiteSettings.model_validate(fields, strict=False))
    made.place.keys.mkdir(parents=True)
    certs.save_key(made.place.keys / "identity.key", identity_of("a"))
    made.ready(PLAN)
    yield made
    made.encoder.cache.close()


@pytest.fixture
def consent(workspace: Workspace) -> Consent:
    """A site that has joined and approved nothing."""
    place = workspace.place
    for path in (place.policy_file, place.audit_file, place.federated_file):
        path.unlink(missing_ok=True)
    for folder in ("plans", "models"):
        shutil.rmtree(place.state / folder, ignore_errors=True)
    write_policy(place.policy_file, "a")
    change_policy(place.policy_file, accept_no_record_privacy=True)
    return Consent(place)


@pytest.fixture
def site(workspace: Workspace, consent: Consent, tmp_path: Path) -> Iterator[SiteRounds]:
    record = ProtocolRecord(tmp_path / "protocol.sqlite")
    yield SiteRounds(workspace, identity_of("a"), consent, record)
    record.close()


def allow(consent: Consent, *plans: Plan) -> None:
    change_policy(consent.place.policy_file, approved_plans=[plan.hash.hex() for plan in plans])


def withdraw(consent: Consent) -> None:
    change_policy(consent.place.policy_file, approved_plans=[], withdrawn_plans=[PLAN.hash.hex()])


def prepared(site: SiteRounds, plan: Plan = PLAN) -> SiteRounds:
    """Approved, and ready for a run of the plan."""
    allow(site.consent, plan)
    for _ in range(600):
        if site.handle(wire.Prepare(plan.canonical)) == wire.Readiness(wire.READY):
            return site
        time.sleep(0.05)
    raise AssertionError("it did not become ready within 30 s")


def refused(site: SiteRounds, message: wire.Message) -> str:
    with pytest.raises(Refusal) as problem:
        site.handle(message)
    return problem.value.code


def train(number: int = 0, vector: bytes = FIRST, plan: Plan = PLAN, use: int = 1) -> wire.TrainRound:
    return wire.TrainRound(plan.hash, number, 0, use, 0, vector)


def model_of(plan: Plan = PLAN, number: int = 0, vector: bytes = FIRST, *, close: bool = False) -> bytes:
    layout = plan.adapter.layout
    return wire.model_hash(layout, wire.pack(trained_from(plan, number, wire.unpack(vector, layout))), close=close)


def stored(site: SiteRounds) -> tuple[str, int] | None:
    found = StoredAdapter.read(site.workspace.place.federated_file)
    return (found.plan.name, found.number) if found else None


def test_a_proposal_is_answered_with_a_signed_notice(site: SiteRounds) -> None:
    public = certs.raw_identity(identity_of("a"))
    for state in (wire.PENDING, wire.APPROVED):
        told = site.handle(wire.Propose(PLAN.canonical))
        assert isinstance(told, wire.Standing)
        wire.verify_standing(public, PLAN.hash, "a", told)
        assert (told.state, told.code) == (state, "")
        allow(site.consent, PLAN)


def test_nothing_is_prepared_for_a_plan_that_nobody_approved(site: SiteRounds) -> None:
    assert refused(site, wire.Prepare(PLAN.canonical)) == "plan-not-approved"
    assert refused(site, train()) == "wrong-context"
    assert site.progress.phase == "idle"


def test_a_round_is_answered_with_the_models_hash_and_the_update_stays_here(site: SiteRounds) -> None:
    assert prepared(site).handle(train()) == wire.Trained(model_of())
    made = site.masking.made
    assert made is not None
    assert np.linalg.norm(made.update) > 0


def test_a_closing_round_trains_nothing(site: SiteRounds, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(site)
    monkeypatch.setattr(module, "local_update", None)
    closing = model_of(number=1, vector=LATER, close=True)
    assert closing != model_of(number=1, vector=LATER)
    assert site.handle(wire.TrainRound(PLAN.hash, 1, 0, 1, 1, LATER)) == wire.Trained(closing)
    made = site.masking.made
    assert made is not None
    assert not made.update.any()


def test_what_became_of_rounds_is_counted_with_their_steps_and_nothing_of_the_rows(
    site: SiteRounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(site).handle(train())
    site.handle(train())  # again, and answered without training
    site.handle(wire.TrainRound(PLAN.hash, 1, 0, 1, 1, LATER))
    monkeypatch.setattr(module, "local_update", None)
    site.handle(train(1, LATER))
    withdraw(site.consent)
    assert refused(site, train(2, LATER)) == "plan-withdrawn"
    exposed = generate_latest(site.metrics.registry).decode()
    found = dict(re.findall(r'^nexus_client_rounds_total{outcome="(\w+)"} (\S+)$', exposed, re.MULTILINE))
    assert found == {"trained": "1.0", "closing": "1.0", "zeros": "1.0", "refused": "1.0"}
    assert f"nexus_client_training_steps_total {float(PLAN.local.steps)}\n" in exposed
    assert f"nexus_client_training_step_duration_seconds_count {float(PLAN.local.steps)}\n" in exposed
    assert 'nexus_client_round_phase_duration_seconds_count{phase="preparing"} 1.0\n' in exposed
    assert 'nexus_client_round_phase_duration_seconds_count{phase="training"} 3.0\n' in exposed
    assert "epsilon_spent" not in exposed


def test_a_repeated_round_is_answered_without_training_again(site: SiteRounds, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(site).handle(train())
    monkeypatch.setattr(module, "local_update", None)
    assert site.handle(train()) == made


def test_what_leaves_of_an_update_is_masked_under_the_approved_plan(site: SiteRounds) -> None:
    prepared(site).handle(train())
    (protocol,) = PLAN.protocol_plans
    server = Server(protocol, 1)
    others = {n: Client(protocol, n, identity_of(n), MemoryRecord(), os.urandom) for n in "bc"}

    def told(data: bytes, inbox: bytes = b"") -> bytes:
        answer = site.handle(wire.Ask(PLAN.hash, 0, inbox, data))
        assert isinstance(answer, wire.Say | wire.Masked)
        return answer.data if isinstance(answer, wire.Say) else answer.vector

    for message in (server.start, server.adverts):
        data = message()
        server.receive(told(data))
        for other in others.values():
            server.receive(other.handle(data) or b"")
    sent = told(server.round(0, model_of()), server.inbox(0))
    server.receive(sent)
    made, figures = site.masking.made, PLAN.aggregation.figures
    assert made is not None
    scaled = np.round(made.update.astype(np.float64) * protocol.q / protocol.range).astype(np.int64)
    seen = unpack_signed(sent[50:-64], protocol.mod_bits)[: len(scaled)]
    assert abs(float(np.corrcoef(scaled, seen)[0, 1])) < 0.02, "nothing of it shows"
    for name, other in others.items():
        other.handle(server.inbox("abc".index(name)))
        server.receive(other.handle(server.round(0, model_of()), Offer(model_of(), lambda: nothing(protocol))) or b"")
    for message in (server.commit, lambda: server.open().message):
        data = message()
        server.receive(told(data))
        for other in others.values():
            server.receive(other.handle(data) or b"")
    mean, weight = codec.decode(protocol, server.total(), 3)
    assert weight == 3
    step = protocol.range / protocol.q
    clamped = np.clip(made.update, -protocol.range, protocol.range)
    np.testing.assert_allclose(3 * mean[: len(scaled)], clamped, atol=2 * step)
    reported = tail.decode(figures, mean[len(scaled) :], protocol.range, 3)
    assert reported.keys() == {"train_loss", "vote"}, "no hold-out here"


def nothing(protocol: ProtocolPlan) -> np.ndarray:
    return np.append(np.zeros(protocol.dim, np.int64), 1)


def test_nothing_is_said_in_the_protocol_without_consent(site: SiteRounds) -> None:
    prepared(site)
    (protocol,) = PLAN.protocol_plans
    setup = wire.Ask(PLAN.hash, 0, b"", Server(protocol, 1).start())
    assert isinstance(site.handle(setup), wire.Say)
    assert refused(site, wire.Ask(bytes(32), 0, b"", setup.data)) == "wrong-context"
    withdraw(site.consent)
    assert refused(site, setup) == "plan-withdrawn", "not even what was said before"


def test_a_withdrawn_plan_is_not_trained_and_not_even_a_made_update_is_sent_again(site: SiteRounds) -> None:
    prepared(site).handle(train())
    withdraw(site.consent)
    assert refused(site, train()) == "plan-withdrawn"
    assert refused(site, wire.Prepare(PLAN.canonical)) == "plan-withdrawn"


def test_an_update_is_not_sent_if_consent_was_withdrawn_while_it_was_made(
    site: SiteRounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.local_update

    def withdrawn_meanwhile(*given: object) -> object:
        withdraw(site.consent)
        return real(*given)  # type: ignore[arg-type]

    prepared(site)
    monkeypatch.setattr(module, "local_update", withdrawn_meanwhile)
    assert refused(site, train()) == "plan-withdrawn"
    assert site.progress.phase == "refused"


def test_a_run_begins_only_at_the_version_that_its_plan_fixes(site: SiteRounds) -> None:
    assert refused(prepared(site), train(vector=LATER)) == "wrong-context"
    following = make_plan("abc", origin={"plan": "ab" * 32, "version": 3, "vector": vector_hash(LATER)}, **QUICK)
    assert refused(prepared(site, following), train(plan=following)) == "wrong-context"
    assert isinstance(site.handle(train(vector=LATER, plan=following)), wire.Trained)


def test_a_message_for_another_run_is_not_worked_on(site: SiteRounds) -> None:
    assert refused(prepared(site), train(plan=make_plan("abc", name="other"))) == "wrong-context"


def test_the_version_to_train_on_is_kept_only_where_it_is_for_use(site: SiteRounds) -> None:
    prepared(site).handle(train(use=0))
    assert stored(site) is None
    site.handle(train(1, LATER))
    assert stored(site) == ("sim", 1)
    received = [line for line in audit.read(site.consent.place.audit_file) if line["event"] == "version received"]
    assert [(line["version"], line["sha256"]) for line in received] == [(1, vector_hash(LATER))]


def test_a_version_that_cannot_be_logged_is_not_kept(site: SiteRounds) -> None:
    prepared(site)
    site.consent.place.audit_file.unlink()
    site.consent.place.audit_file.mkdir()
    with pytest.raises(NexusError, match="audit log"):
        site.handle(wire.Deliver(PLAN.hash, 1, 0, b"", LATER))
    site.consent.place.audit_file.rmdir()
    assert stored(site) is None


def test_a_delivered_version_is_kept_and_answered_with_its_hash(site: SiteRounds) -> None:
    answer = prepared(site).handle(wire.Deliver(PLAN.hash, 4, 0, b"", LATER))
    assert answer == wire.Received(wire.model_hash(PLAN.adapter.layout, LATER))
    assert stored(site) == ("sim", 4)


def held(site: SiteRounds, plan: Plan = PLAN) -> list[tuple[int, int, str]]:
    answer = site.handle(wire.Recall(plan.hash, b""))
    assert isinstance(answer, wire.Holds)
    return [(one.round, one.stage, one.digest) for one in unpack_holdings(answer.versions)]


def test_a_restored_server_hears_which_versions_came_and_were_not_called_back(site: SiteRounds) -> None:
    prepared(site)
    assert held(site) == []
    for number, vector in ((1, FIRST), (3, LATER), (4, OTHER), (3, LATER)):
        site.handle(wire.Deliver(PLAN.hash, number, 0, b"", vector))
    assert held(site) == [(1, 0, vector_hash(FIRST)), (3, 0, vector_hash(LATER))]
    site.handle(train(4, NEXT))
    assert held(site)[-1] == (4, 0, vector_hash(NEXT))


def test_a_restored_server_gets_the_version_that_it_names_while_it_is_here(site: SiteRounds) -> None:
    prepared(site).handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    version, shelf = StoredAdapter.read(site.workspace.place.federated_file), Shelf(site.workspace.place)
    assert version is not None
    shelf.put(version, "federated", accepted=True, reason="")
    site.handle(wire.Deliver(PLAN.hash, 4, 0, b"", OTHER))
    for vector in (OTHER, LATER):  # what came last, and what is on the shelf
        wanted = bytes.fromhex(vector_hash(vector))
        assert site.handle(wire.Recall(PLAN.hash, wanted)) == wire.Given(vector)
    assert refused(site, wire.Recall(PLAN.hash, bytes.fromhex(vector_hash(NEXT)))) == "wrong-context"


def test_what_came_last_is_named_and_given_also_with_a_new_log_and_a_damaged_list(site: SiteRounds) -> None:
    prepared(site).handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    place = site.workspace.place
    place.audit_file.rename(place.audit_file.with_name("moved"))
    Shelf(place).folder.mkdir(exist_ok=True)
    Shelf(place).file.write_bytes(b"damaged")
    assert held(site) == [(3, 0, vector_hash(LATER))]
    assert site.handle(wire.Recall(PLAN.hash, bytes.fromhex(vector_hash(LATER)))) == wire.Given(LATER)
    place.federated_file.write_bytes(b"damaged")
    assert held(site) == []


def test_a_restored_server_hears_what_came_whatever_people_say_to_the_plan_by_now(site: SiteRounds) -> None:
    prepared(site).handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    other = make_plan("abc", **{**QUICK, "name": "other"})
    assert refused(site, wire.Recall(other.hash, b"")) == "plan-not-approved"
    withdraw(site.consent)
    assert held(site) == [(3, 0, vector_hash(LATER))]
    assert site.handle(wire.Recall(PLAN.hash, bytes.fromhex(vector_hash(LATER)))) == wire.Given(LATER)


def test_after_a_withdrawal_a_version_can_be_called_back_and_nothing_new_comes(site: SiteRounds) -> None:
    prepared(site).handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    site.handle(wire.Deliver(PLAN.hash, 4, 0, b"", OTHER))
    withdraw(site.consent)
    for number, vector in ((5, OTHER), (3, OTHER), (2, LATER)):
        assert refused(site, wire.Deliver(PLAN.hash, number, 0, b"", vector)) == "plan-withdrawn"
    assert stored(site) == ("sim", 4)
    site.handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    assert stored(site) == ("sim", 3)
    site.handle(wire.Deliver(PLAN.hash, 0, 0, b"", FIRST))
    assert stored(site) == ("sim", 0), "the base model's own output is always harmless"


def test_a_log_from_before_versions_were_judged_says_what_was_here(site: SiteRounds) -> None:
    prepared(site).handle(wire.Deliver(PLAN.hash, 4, 0, b"", OTHER))
    known = {"plan": PLAN.hash.hex(), "version": 3, "sha256": vector_hash(LATER)}
    site.consent.audit.append("version accepted", **known)
    withdraw(site.consent)
    assert refused(site, wire.Deliver(PLAN.hash, 3, 0, b"", OTHER)) == "plan-withdrawn"
    site.handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    assert stored(site) == ("sim", 3)


def test_what_the_server_takes_back_is_out_of_use_at_once_and_what_was_made_of_it(site: SiteRounds) -> None:
    shelf = Shelf(site.workspace.place)
    prepared(site)
    for number, vector in ((3, LATER), (4, OTHER)):
        site.handle(wire.Deliver(PLAN.hash, number, 0, b"", vector))
        version = StoredAdapter.read(site.workspace.place.federated_file)
        assert version is not None
        shelf.put(version, "federated", accepted=True, reason="", chosen=True)
    own = shelf.put(version, "personal", accepted=True, reason="", chosen=True)
    alone = shelf.put(version, "alone", accepted=True, reason="")
    shelf.pin(own)
    site.handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    models = shelf.models
    assert [held.name for held in models.held] == ["sim-3", alone]
    assert (models.in_use, models.pinned, list(models.gone)) == ("sim-3", None, [own, "sim-4"])
    site.handle(wire.Deliver(PLAN.hash, 0, 0, b"", FIRST))
    assert (shelf.models.in_use, len(shelf.models.held)) == ("base", 1)


def withdrawing(number: int, vector: bytes, *out: bytes) -> wire.Deliver:
    """A delivery that names versions as out of use."""
    return wire.Deliver(PLAN.hash, number, 0, b"".join(bytes.fromhex(vector_hash(one)) for one in out), vector)


def shelved(site: SiteRounds, number: int, vector: bytes) -> StoredAdapter:
    """A version came, and this site's hold-out took it."""
    site.handle(wire.Deliver(PLAN.hash, number, 0, b"", vector))
    version = StoredAdapter.read(site.workspace.place.federated_file)
    assert version is not None
    Shelf(site.workspace.place).put(version, "federated", accepted=True, reason="", chosen=True)
    return version


@pytest.mark.parametrize("consents", [True, False])
def test_what_was_taken_back_while_the_site_was_away_goes_with_the_next_version(
    site: SiteRounds, *, consents: bool
) -> None:
    shelf = Shelf(site.workspace.place)
    shelved(prepared(site), 3, LATER)
    version = shelved(site, 4, OTHER)
    own = shelf.put(version, "personal", accepted=True, reason="", chosen=True, made_of=version)
    alone = shelf.put(version, "alone", accepted=True, reason="")
    shelf.pin(own)
    if consents:
        site.handle(withdrawing(6, NEXT, OTHER))
        assert stored(site) == ("sim", 6)
    else:
        withdraw(site.consent)
        assert refused(site, withdrawing(6, NEXT, OTHER)) == "plan-withdrawn"
        assert stored(site) == ("sim", 4)
    models = shelf.models
    heard = [line["versions"] for line in audit.read(site.consent.place.audit_file) if "withdrawals" in line["event"]]
    assert heard == [1]
    assert [held.name for held in models.held] == ["sim-3", alone]
    assert (models.in_use, models.pinned, set(models.gone)) == ("sim-3", None, {own, "sim-4"})
    assert models.why == "the server has taken back what was chosen before"
    for kind, of in (("federated", None), ("personal", version)):
        with pytest.raises(Gone, match="taken back by the server"):
            shelf.put(version, kind, accepted=True, reason="", made_of=of)


def test_a_personal_model_of_an_older_list_goes_with_its_version_and_where_that_is_unknown_too(
    site: SiteRounds,
) -> None:
    shelf = Shelf(site.workspace.place)
    kept = shelf.put(shelved(prepared(site), 3, LATER), "personal", accepted=True, reason="")
    lost = shelf.put(shelved(site, 4, OTHER), "personal", accepted=True, reason="", chosen=True)
    stray = StoredAdapter(PLAN, 2, np.zeros(PLAN.adapter.layout.dim, np.float32), PLAN.adapter.layout)
    unknown = shelf.put(stray, "personal", accepted=True, reason="")
    assert {held.made_of for held in shelf.models.held} == {""}, "as lists of earlier software have it"
    site.handle(withdrawing(6, NEXT, OTHER))
    models = shelf.models
    assert [held.name for held in models.held] == ["sim-3", kept]
    assert {lost, unknown, "sim-4"} == set(models.gone)
    assert (models.in_use, models.chosen_for) == ("sim-3", ""), "the choice is made again, and the model with it"


def test_what_is_sent_in_the_same_breath_is_in_use_and_what_is_named_no_more_may_come_again(site: SiteRounds) -> None:
    shelf = Shelf(site.workspace.place)
    shelved(prepared(site), 4, OTHER)
    site.handle(withdrawing(4, OTHER, OTHER, LATER))
    assert shelf.models.in_use == "sim-4"
    site.handle(withdrawing(6, NEXT, OTHER, LATER))
    assert shelf.models.held == ()
    shelved(site, 4, OTHER)
    assert shelf.models.in_use == "sim-4", "a server that was put back to a backup has it in use again"


def test_another_plan_of_the_same_name_calls_nothing_back(site: SiteRounds) -> None:
    shelf, version = Shelf(site.workspace.place), StoredAdapter(PLAN, 4, np.zeros(4, np.float32), Layout())
    other = make_plan("abc", name=PLAN.name, rounds=PLAN.rounds + 1, **QUICK)
    kept = shelf.put(version, "federated", accepted=True, reason="", chosen=True)
    prepared(site, other).handle(wire.Deliver(other.hash, 1, 0, b"", LATER))
    assert (stored(site), shelf.models.in_use) == ((PLAN.name, 1), kept)
    prepared(site).handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    assert shelf.models.held == ()


def test_a_list_of_models_that_is_damaged_costs_no_round(site: SiteRounds) -> None:
    prepared(site)
    shelf = Shelf(site.workspace.place)
    shelf.folder.mkdir()
    shelf.file.write_text("{")
    assert site.handle(train(1, LATER)) == wire.Trained(model_of(number=1, vector=LATER))
    assert stored(site) == ("sim", 1)


@needs_root
def test_what_cannot_be_taken_out_of_use_is_not_said_to_be(site: SiteRounds) -> None:
    shelf = Shelf(site.workspace.place)
    with volume(shelf.folder, 4) as disk:
        shelved(prepared(site), 3, LATER)
        shelved(site, 4, OTHER)
        disk.fill()
        for message in (withdrawing(6, NEXT, OTHER), wire.Deliver(PLAN.hash, 3, 0, b"", LATER)) * 2:
            with pytest.raises(NexusError, match=r"models.json cannot be written .*; free some space"):
                site.handle(message)
        assert shelf.models.in_use == "sim-4"
        disk.empty()
        assert isinstance(site.handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER)), wire.Received)
        assert shelf.models.in_use == "sim-3", "also where the version itself had come before"


def test_the_log_is_not_searched_for_a_version_that_may_come_anyway(
    site: SiteRounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = list[Path]()
    monkeypatch.setattr(receiving, "read", lambda path: searched.append(path) or iter(()))
    prepared(site).handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    assert not searched
    withdraw(site.consent)
    assert refused(site, wire.Deliver(PLAN.hash, 4, 0, b"", OTHER)) == "plan-withdrawn"
    assert searched


def test_a_version_that_is_here_already_is_not_logged_again(site: SiteRounds) -> None:
    prepared(site)
    for _ in range(3):
        site.handle(wire.Deliver(PLAN.hash, 3, 0, b"", LATER))
    assert [line["event"] for line in audit.read(site.consent.place.audit_file)].count("version received") == 1


def test_a_version_beyond_the_plans_rounds_is_refused(site: SiteRounds) -> None:
    most = PLAN.protocol_plans[0].rounds
    prepared(site).handle(wire.Deliver(PLAN.hash, most - 1, 0, b"", LATER))
    for message in (train(most, LATER), wire.Deliver(PLAN.hash, most, 0, b"", LATER)):
        assert refused(site, message) == "wrong-context"


def test_a_version_of_a_plan_that_is_not_approved_is_not_taken(site: SiteRounds) -> None:
    prepared(site).handle(wire.Deliver(PLAN.hash, 4, 0, b"", LATER))
    other = make_plan("abc", name="other", **QUICK)
    assert refused(site, wire.Deliver(other.hash, 1, 0, b"", LATER)) == "plan-not-approved"
    site.handle(wire.Propose(other.canonical))
    assert refused(site, wire.Deliver(other.hash, 1, 0, b"", LATER)) == "plan-not-approved"
    assert stored(site) == ("sim", 4)


@pytest.mark.parametrize("vector", [LATER[:-4], LATER[:-4] + np.float32("nan").tobytes()], ids=["short", "not finite"])
def test_a_version_that_is_no_vector_of_the_layout_is_not_kept(site: SiteRounds, vector: bytes) -> None:
    prepared(site)
    for message in (wire.Deliver(PLAN.hash, 1, 0, b"", vector), train(1, vector)):
        assert refused(site, message) == "bad-update"
    assert stored(site) is None


def test_fewer_rows_than_the_policy_wants_are_not_trained_on(site: SiteRounds) -> None:
    allow(site.consent, PLAN)
    change_policy(site.consent.place.policy_file, min_rows=13)
    assert site.handle(wire.Prepare(PLAN.canonical)) == wire.Readiness(wire.PREPARING)
    assert site._preparing is not None
    site._preparing.join()
    assert refused(site, train()) == "not-ready"
    assert refused(site, wire.Prepare(PLAN.canonical)) == "too-few-rows"
    assert "12 training rows, policy.toml wants min_rows = 13" in str(site.progress.problem)


def test_rows_that_have_become_too_few_for_the_policy_are_not_trained_on_any_more(site: SiteRounds) -> None:
    prepared(site).handle(train())
    change_policy(site.consent.place.policy_file, min_rows=13)
    for message in (train(1, LATER), wire.Prepare(PLAN.canonical)):
        assert refused(site, message) == "too-few-rows"


def test_another_base_model_is_refused(site: SiteRounds) -> None:
    plan = make_plan("abc", base_model="00" * 32)
    allow(site.consent, plan)
    assert refused(site, wire.Prepare(plan.canonical)) == "unknown-base-model"


def test_a_message_that_only_sites_send_is_unknown(site: SiteRounds) -> None:
    assert refused(site, wire.Refused("paused")) == "unknown-message"


@pytest.mark.parametrize("fault", [NexusError("training diverged"), ValueError("not finite"), RuntimeError("torch")])
@pytest.mark.parametrize("where", ["local_update", "report"])
def test_whatever_goes_wrong_with_a_sites_rows_the_server_hears_the_same(
    site: SiteRounds, monkeypatch: pytest.MonkeyPatch, fault: Exception, where: str
) -> None:
    """Otherwise it could ask for any text whether it is here, with weights under which that text alone overflows."""

    def fails(*_: object) -> object:
        raise fault

    prepared(site)
    monkeypatch.setattr(module if where == "local_update" else module.HeldOut, where, fails)
    assert site.handle(train()) == wire.Trained(model_of())
    made = site.masking.made
    assert made is not None
    assert (made.figures, made.update.any()) == ([{}], False)
    assert "zeros were sent in its place" in (site.progress.problem or "")


def test_weights_that_no_round_leads_to_are_not_even_tried(site: SiteRounds, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(site)
    monkeypatch.setattr(module, "local_update", None)
    vector = wire.unpack(LATER, PLAN.adapter.layout)
    vector[3] = 1e6
    assert refused(site, train(1, wire.pack(vector))) == "bad-version"


def test_a_site_trains_on_no_more_models_than_a_run_can_have(site: SiteRounds, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(site)

    def trained(layout: Layout, *given: Any) -> np.ndarray:
        given[5](1, 0.5)  # a step was made
        return np.zeros(layout.dim, np.float32)

    monkeypatch.setattr(module, "local_update", trained)
    vector, most = wire.unpack(LATER, PLAN.adapter.layout), PLAN.protocol_plans[0].rounds + 1
    for number in range(most):
        vector[3] = number / 1000
        site.handle(train(1, wire.pack(vector)))
    vector[3] = -1 / 1000
    assert refused(site, train(1, wire.pack(vector))) == "rounds-spent"
    assert site.record.number("SELECT count(*) FROM trained") == most, "what is refused is not kept"
    kept = StoredAdapter.read(site.workspace.place.federated_file)
    assert kept is None or kept.vector[3] >= 0, "neither is its version"


def test_nothing_but_an_inbox_passes_for_one(site: SiteRounds) -> None:
    prepared(site)
    (protocol,) = PLAN.protocol_plans
    setup = Server(protocol, 1).start()
    assert refused(site, wire.Ask(PLAN.hash, 0, setup, setup)) == "malformed"


def test_a_model_of_another_plan_is_not_trained_on(site: SiteRounds) -> None:
    prepared(site)
    site.record.note_trained(b"another plan", model_of(), [b"w"])
    assert refused(site, train()) == "model-replay"


def trial_of(plan: Plan, weights: bytes) -> bytes:
    """The first version of a trial that begins with these weights."""
    alone = plan.stages[0]
    return wire.pack(moved(wire.unpack(weights, alone), alone, plan.stages[TRIAL], plan.adapter.seed_bytes))


def test_all_arms_of_a_trial_train_on_the_same_batches_and_the_control_is_for_use(
    site: SiteRounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(site, GROWING)
    drawn: list[int] = []

    def trained(layout: Layout, vector: np.ndarray, *given: Any) -> np.ndarray:
        drawn.append(int(given[3].integers(2**63)))
        given[4](1, float(layout.projection))
        return np.full(layout.dim, layout.projection, np.float32)

    monkeypatch.setattr(module, "local_update", trained)
    monkeypatch.setattr(HeldOut, "report", lambda _, layout, vector: {"score": layout.projection / 4})
    trial, form = trial_of(GROWING, LATER), GROWING.stages[TRIAL]
    assert site.handle(wire.TrainRound(GROWING.hash, 2, TRIAL, 1, 0, trial)) == wire.Trained(
        wire.model_hash(form, trial)
    )
    made, kept = site.masking.made, StoredAdapter.read(site.workspace.place.federated_file)
    assert made is not None
    assert kept is not None
    assert len(drawn) == 2
    assert len(set(drawn)) == 1
    assert made.figures == [{"score": 0.0, "train_loss": 0.0}, {"score": 0.25, "train_loss": 1.0}]
    assert [set(arm) for arm in form.split(made.update)] == [{0.0}, {1.0}]
    assert (kept.layout, wire.pack(kept.vector)) == (form.arms[0], LATER)


def test_a_trial_is_not_trained_with_a_dendrite_of_the_servers_choice_or_delivered_for_use(site: SiteRounds) -> None:
    prepared(site, GROWING)
    trial, arm = np.frombuffer(trial_of(GROWING, LATER), "<f4").copy(), GROWING.stages[TRIAL].arms[1]
    arm.split(GROWING.stages[TRIAL].split(trial)[1])["projection.dendrites.0.bias"][0] = 0.5
    assert refused(site, wire.TrainRound(GROWING.hash, 2, TRIAL, 1, 0, wire.pack(trial))) == "bad-version"
    for stage in (TRIAL, TRIAL + 1):
        assert refused(site, wire.Deliver(GROWING.hash, 2, stage, b"", trial_of(GROWING, LATER))) == "wrong-context"
    assert refused(site, wire.TrainRound(GROWING.hash, 2, TRIAL + 1, 1, 0, LATER)) == "wrong-context"
    assert stored(site) is None


def test_weights_of_another_plan_are_not_trained_on_in_a_trial_or_a_closing_round_either(site: SiteRounds) -> None:
    """A sum of them may be open that this site has a part in and did not help to open."""
    prepared(site).handle(train(1, LATER))
    prepared(site, GROWING)
    for stage, close, vector in ((0, 0, LATER), (0, 1, LATER), (TRIAL, 0, trial_of(GROWING, LATER))):
        assert refused(site, wire.TrainRound(GROWING.hash, 1, stage, 1, close, vector)) == "model-replay"
