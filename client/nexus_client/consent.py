"""What a site's people have said to plans: proposals, approvals and withdrawals, asked for at each request.

The server proposes, and nobody believes it: a plan counts where its hash stands in the site's own ``policy.toml``, and
it gets there only through ``approve``, which asks a person for the twelve words that another site read out.
"""

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError, Refusal
from nexus_common.plan import Plan, hash_of, plan_from_wire
from nexus_common.plan_words import check_words

from nexus_client.policy import Policy, read_policy, require_changeable, rewrite_policy
from nexus_client.privacy import epsilon
from nexus_client.site import SiteHome

KEPT_PROPOSALS: Final = 8


@dataclass(frozen=True)
class Consent:
    """Proposals in ``state/plans``, the policy, and the audit log of one site."""

    place: SiteHome

    @property
    def key(self) -> bytes:
        """The public identity key that a plan must name."""
        return certs.raw_identity(certs.load_identity(self.place.keys / "identity.key"))

    @property
    def policy(self) -> Policy:
        """As it stands now; Refusal ``policy-invalid``."""
        return read_policy(self.place.policy_file)

    @property
    def audit(self) -> AuditLog:
        """The site's audit log."""
        return AuditLog(self.place.audit_file)

    @property
    def _folder(self) -> Path:
        return self.place.state / "plans"

    def offer(self, data: bytes) -> Plan:
        """Keep a proposal; Refusal ``malformed`` or ``own-cert``: no plan without this site's own key is shown here."""
        plan = plan_from_wire(data)
        if (self.place.site, self.key.hex()) not in {(member.name, member.key) for member in plan.sites}:
            raise Refusal("own-cert", f"plan {plan.name} does not name {self.place.site} with this site's key")
        path = self._file(plan.hash)
        if _stored(path) is None:
            policy = self.policy  # with one that cannot be read nothing is kept, since nothing could be dropped
            self.audit.append("plan proposed", plan=plan.hash.hex(), name=plan.name)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, data)
            self._prune({*policy.approved_plans, *policy.withdrawn_plans})
        return plan

    def _prune(self, named: set[str]) -> None:
        """Drop the oldest proposals, but none that the policy names."""
        old = [plan for plan in self.proposals() if plan.hash.hex() not in named][KEPT_PROPOSALS:]
        for plan in old:
            self._file(plan.hash).unlink(missing_ok=True)

    def _file(self, plan_hash: bytes) -> Path:
        return self._folder / f"{plan_hash.hex()}.json"

    def proposals(self) -> list[Plan]:
        """All kept plans, the newest proposal first; a damaged file is none, and is proposed again."""
        found = ((_age(path), _stored(path)) for path in self._folder.glob("*.json"))
        return [plan for _, plan in sorted(found, key=lambda one: one[0]) if plan is not None]

    def plan(self, plan_hash: bytes) -> Plan:
        """A kept plan by its hash; Refusal ``plan-not-approved`` where there is none: nobody can have approved it."""
        plan = _stored(self._file(plan_hash))
        if plan is None:
            raise Refusal("plan-not-approved", "a plan that was never proposed here")
        return plan

    def find(self, name: str | None) -> Plan:
        """The plan of this name or beginning of its hash; without one the newest proposal.  NexusError otherwise."""
        plans = self.proposals()
        for plan in plans:
            if _is_asked(name, plan.name, plan.hash.hex()):
                return plan
        if name is None:
            raise NexusError(
                "the server has proposed no plan yet; the coordinator does: nexus-server plan propose PLAN"
            )
        known = ", ".join(plan.name for plan in plans) or "none"
        raise NexusError(f"no plan {name!r} was proposed to this site; there is: {known}")

    def approved(self) -> Plan | None:
        """The plan that is approved here."""
        for name in self.policy.approved_plans:
            if (plan := _stored(self._file(bytes.fromhex(name)))) is not None:
                return plan
        return None

    def outdated(self) -> str | None:
        """What a person should know of an approval that an update of NEXUS ended, by giving plans new settings.

        What was approved is a plan's text, and with new settings it has another one.
        """
        for number in self.policy.approved_plans:
            path = self._file(bytes.fromhex(number))
            if _stored(path) is None and hash_of(text := _bytes(path)).hex() == number:
                name = json.loads(text)["name"]  # it was read before it was kept, by the release of that time
                return (
                    f"plan {name} was approved here under another release of NEXUS, whose plans have other settings, "
                    "so that approval ended with the update; once the server has this release too, look at the plan "
                    "that it proposes and approve that: `nexus-client plan show`, `nexus-client plan approve`"
                )
        return None

    def require(self, plan: Plan) -> None:
        """Raise Refusal unless this plan may run here now."""
        self.policy.require(plan, dt.datetime.now().astimezone())

    def standing(self, plan: Plan) -> tuple[str, str]:
        """Where this site stands on a plan, and the code of what its policy objects to, or an empty one."""
        try:
            policy = self.policy
        except Refusal as refusal:
            return wire.PENDING, refusal.code
        name = plan.hash.hex()
        known = {**dict.fromkeys(policy.withdrawn_plans, wire.WITHDRAWN)}
        known |= dict.fromkeys(policy.approved_plans, wire.APPROVED)
        try:
            if policy.participation != "active":
                raise Refusal(policy.participation)
            policy.check_plan(plan, dt.datetime.now(dt.UTC).date())
        except Refusal as refusal:
            return known.get(name, wire.PENDING), refusal.code
        return known.get(name, wire.PENDING), ""

    def check(self, plan: Plan) -> None:
        """Raise Refusal where the policy forbids to approve a plan, which is logged; NexusError where nobody can."""
        require_changeable(self.place.policy_file)
        try:
            if plan.privacy and self.policy.max_epsilon is not None:
                self.policy.check_epsilon(plan, epsilon(plan))
            self.policy.check_plan(plan, dt.datetime.now(dt.UTC).date())
        except Refusal as refusal:
            self.audit.append("refused", purpose="approve", code=refusal.code, plan=plan.hash.hex(), name=plan.name)
            raise

    def approve(self, plan: Plan, words: str, by: str, reference: str | None) -> None:
        """Approve a plan in the name of ``by``; the approval before it ends.  Refusal where words or policy forbid."""
        self.check(plan)
        name = plan.hash.hex()
        try:
            check_words(words, plan.hash)
        except Refusal as refusal:
            self.audit.append("refused", purpose="approve", code=refusal.code, plan=name, name=plan.name, by=by)
            raise
        today = dt.datetime.now().astimezone().date()
        note = f"{plan.name}, approved {today} by {by}" + (f", {reference}" if reference else "")
        self.audit.append("plan approved", plan=name, name=plan.name, by=by, reference=reference)
        rewrite_policy(
            self.place.policy_file,
            lambda policy: {"approved_plans": [name], "withdrawn_plans": sorted({*policy.withdrawn_plans} - {name})},
            note,
        )

    def withdraw(self, asked: str | None, by: str, reference: str | None) -> str:
        """Take back an approval, at once, of the plan of this name or hash, or of the one that is approved; its name.

        Done before it is logged, since it must not wait for the log; done again it is logged again.
        """
        policy = self.policy
        for number in (*policy.approved_plans, *(policy.withdrawn_plans if asked else ())):
            plan = _stored(self._file(bytes.fromhex(number)))
            name = plan.name if plan else number
            if _is_asked(asked, name, number):
                self._withdraw(number)
                self.audit.append("plan withdrawn", plan=number, name=name, by=by, reference=reference)
                return name
        raise NexusError(f"no plan {asked or ''} is approved here; there is nothing to withdraw")

    def _withdraw(self, number: str) -> None:
        rewrite_policy(
            self.place.policy_file,
            lambda policy: {
                "approved_plans": [one for one in policy.approved_plans if one != number],
                "withdrawn_plans": sorted({*policy.withdrawn_plans, number}),
            },
        )

    def participate(self, participation: str, by: str) -> None:
        """Pause, resume or leave; leaving takes every approval back too."""
        forgotten: dict[str, Any] = {"approved_plans": []} if participation == "left" else {}
        rewrite_policy(self.place.policy_file, lambda _: {"participation": participation, **forgotten})
        self.audit.append(f"participation {participation}", by=by)


def _is_asked(asked: str | None, name: str, number: str) -> bool:
    """Whether a person means this plan: by its name, by the beginning of its hash, or by naming none."""
    return asked in (None, name) or (asked is not None and len(asked) >= 8 and number.startswith(asked))


def _stored(path: Path) -> Plan | None:
    """A kept plan, None where there is none that can be read under its name."""
    try:
        plan = plan_from_wire(_bytes(path))
    except Refusal:
        return None
    return plan if plan.hash.hex() == path.stem else None


def _bytes(path: Path) -> bytes:
    """Nothing where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # the agent has just dropped it
