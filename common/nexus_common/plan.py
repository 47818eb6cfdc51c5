"""The consortium plan: what people approve, and all that a run is.  One TOML file, the same at every site.

It names sites and their keys, the purpose, who is responsible, the end, and every setting of the training.  Its hash is
what a site's policy holds as approved; the plans of secure aggregation (``secagg/plan.py``) derive from it by a fixed
rule (specification, "Derived plans"), so approving it approves them.
"""

import datetime as dt
import hashlib
import json
import math
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from nexus_common.config import Settings, SiteName, parse_toml
from nexus_common.errors import Refusal
from nexus_common.hours import Hours, HoursText
from nexus_common.recipe import Hex, Positive, Recipe
from nexus_common.secagg.labels import label
from nexus_common.secagg.messages import advert_size
from nexus_common.secagg.plan import ProtocolPlan, check, threshold
from nexus_common.stages import Stage
from nexus_common.tail import Figure, width

MAX_PLAN_BYTES: Final = 128 << 10
MAX_KEY_BYTES: Final = 1_000_000  # of all sites' keys for an epoch, in one message
_RELEASES: Final = "a server of another release of NEXUS writes other plans than this one reads"
MAX_NAME: Final = 48  # with the layout's number behind it, still a name of the protocol


def _printable(text: str) -> str:
    """No control characters, and none that turn the direction of writing: a person reads and approves this."""
    if not text.isprintable():
        raise ValueError("holds characters that do not print")
    return text


Line = Annotated[str, StringConstraints(max_length=300, strip_whitespace=True), AfterValidator(_printable)]
RunName = Annotated[SiteName, Field(max_length=MAX_NAME)]


class ServerSettings(Settings):
    """``[server]``: how a round's mean update becomes the next version.

    By default by momentum (Hsu et al. 2019): what rounds agree on adds up to 3.5 times a mean update, and what swings
    does not.  A plain step of 2 doubles what distillation pulls back, and overshoots.
    """

    optimiser: Literal["fedavg", "fedavgm", "fedadam"] = "fedavgm"
    step: Positive = 0.7
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.8
    second_moment: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: Positive = 1e-4


class AggregationSettings(Settings):
    """``[aggregation]``: the numbers of the masked sum, as the specification names them."""

    slots: int = 50
    strict: bool = False
    value_bits: int = 18
    mod_bits: int = 24
    range: Positive = 0.1
    figures: tuple[Figure, ...] = ("train_loss", "loss", "score", "questions", "vote")

    @model_validator(mode="after")
    def _each_once(self) -> "AggregationSettings":
        if len(set(self.figures)) < len(self.figures):
            raise ValueError("figures: one stands twice")
        return self


class SafetySettings(Settings):
    """``[safety]``: when the server takes a version back by itself.

    Each site votes 1 where its hold-out shows the version to be better than the base model, -1 where worse.  It is
    taken back where the votes of a round add up to minus ``max_rejections`` of its sites, or less.
    """

    max_rejections: Annotated[float, Field(gt=0, le=1)] = 0.5


class PrivacySettings(Settings):
    """``[privacy]``: record-level differential privacy (specification, codec 1); absent means none."""

    noise: Positive
    sampling: Annotated[float, Field(gt=0, le=1)]
    honest: Annotated[int, Field(ge=1)]
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


class Member(Settings):
    """``[[sites]]``: a site, the identity key that it signs with, and who answers for it."""

    name: SiteName
    key: Hex
    controller: Line
    contact: Line


class Origin(Settings):
    """``[origin]``: where a plan that follows another one begins; without ``version``, at the newest there is."""

    plan: Hex
    version: Annotated[int, Field(ge=0)] | None = None
    vector: Hex | None = None  # SHA-256 of that version's numbers


class Plan(Recipe):
    """A consortium plan."""

    name: RunName
    purpose: Line
    end_date: dt.date
    sites: tuple[Member, ...]
    min_cohort: int = 3
    start: Literal["every-site", "quorum"] = "every-site"
    hours_utc: HoursText = "00:00-24:00"
    round_deadline_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    gather_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    origin: Origin | None = None
    server: ServerSettings = ServerSettings()
    aggregation: AggregationSettings = AggregationSettings()
    safety: SafetySettings = SafetySettings()
    privacy: PrivacySettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        empty = [member.name for member in self.sites if not (member.controller and member.contact)]
        if empty:
            raise ValueError(f"sites: controller and contact of {', '.join(empty)} are missing: people sign for them")
        if not self.purpose:
            raise ValueError("purpose: say what the model is for; people approve that")
        keys = len(self.sites) * advert_size(self.aggregation.slots)
        if keys > MAX_KEY_BYTES:
            raise ValueError(
                f"aggregation.slots: {len(self.sites)} sites with keys for {self.aggregation.slots} rounds exchange "
                f"{keys} bytes at once, at most {MAX_KEY_BYTES}; take fewer slots"
            )
        try:
            for derived in self.protocol_plans:
                check(derived)
        except Refusal as refusal:
            raise ValueError(str(refusal)) from None
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, in roster order."""
        return tuple(member.name for member in self.sites)

    @property
    def quorum(self) -> int:
        """The fewest sites that make a version: the larger of the protocol's threshold and ``min_cohort``."""
        return max(threshold(len(self.sites)), self.min_cohort)

    @property
    def hours(self) -> Hours:
        """When rounds are run, in UTC."""
        return Hours.parse(self.hours_utc)

    @property
    def canonical(self) -> bytes:
        """The same bytes for the same settings, whatever the file's order, comments and defaults."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def hash(self) -> bytes:
        """What is approved, and the run's identity."""
        return hash_of(self.canonical)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every form that the run's adapter may take; where sites report no loss and score, it cannot grow."""
        told = {"loss", "score"} <= {*self.aggregation.figures} and self.privacy is None
        return super().stages if told else super().stages[:1]

    @property
    def most_inputs(self) -> int:
        """How many masked inputs a site gives at most, under all protocol plans together; failed slots count."""
        return 2 * self.rounds + 20

    @property
    def protocol_plans(self) -> tuple[ProtocolPlan, ...]:
        """One plan of secure aggregation for each stage (specification, "Derived plans")."""
        return tuple(self.protocol_plan(number) for number in range(len(self.stages)))

    def protocol_plan(self, number: int) -> ProtocolPlan:
        """The plan of secure aggregation for one stage."""
        noise, stage = self.privacy, self.stages[number]
        return ProtocolPlan(
            run=f"{self.name}.{number}",
            model=hashlib.sha256(label("layout") + self.hash + stage.hash).digest(),
            roster=tuple((member.name, bytes.fromhex(member.key)) for member in self.sites),
            t=threshold(len(self.sites)),
            min_cohort=self.min_cohort,
            strict=self.aggregation.strict,
            slots=self.aggregation.slots,
            rounds=self.most_inputs,
            dim=stage.dim + len(stage.arms) * width(self.aggregation.figures),
            value_bits=self.aggregation.value_bits,
            mod_bits=self.aggregation.mod_bits,
            codec=1 if noise else 0,
            clip=self.local.clip_norm * math.sqrt(len(stage.arms)),  # each arm is clipped by itself
            range=self.aggregation.range,
            weight_max=1,
            weight_unit=1,
            noise=noise.noise if noise else 0.0,
            sampling=noise.sampling if noise else 0.0,
            honest=noise.honest if noise else 0,
        )


def hash_of(canonical: bytes) -> bytes:
    """SHA-256 of a plan's canonical bytes."""
    return hashlib.sha256(b"nexus consortium plan 1\n" + canonical).digest()


def parse_plan(text: str, where: str) -> Plan:
    """Read a plan; ``where`` names the file in errors."""
    return parse_toml(Plan, text, where)


def plan_from_wire(data: bytes) -> Plan:
    """Read a plan that the server sent; Refusal ``malformed``, and nothing of its text is repeated."""
    if len(data) > MAX_PLAN_BYTES:
        raise Refusal("malformed", f"a plan of {len(data)} bytes, at most {MAX_PLAN_BYTES}")
    try:
        plan = Plan.model_validate_json(data)
    except ValidationError as problem:
        faults = f"the plan has {problem.error_count()} fault(s)"
        raise Refusal("malformed", f"{faults}; {_RELEASES}") from None
    if plan.canonical != data:
        raise Refusal("malformed", f"the plan is not in its canonical form; {_RELEASES}")
    return plan
