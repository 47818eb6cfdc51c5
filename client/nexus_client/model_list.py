"""The list of the models that a site holds, as ``models.json`` says it, and what becomes of it: pure, no file is here.

Which came, which is chosen, which a person pinned, which are gone.
"""

import re
from typing import Final, Literal

from nexus_common.config import Settings
from nexus_common.errors import NexusError
from nexus_common.plan import Plan
from pydantic import Field, field_validator

Kind = Literal["alone", "federated", "personal"]
KINDS: Final[tuple[Kind, ...]] = ("alone", "federated", "personal")
BASE: Final = "base"
UNKNOWN: Final = "unknown"
KEPT: Final = 3  # of each kind: the newest and two before it
REMEMBERED: Final = 1000  # names of models that are no longer held


class Held(Settings):
    """A model that the site holds; ``accepted`` says whether the hold-out took it, ``reason`` why or why not.

    Of a version and of what was made of one, ``plan`` is the plan's hash and ``run`` its name, which two may share.
    """

    name: str
    kind: Kind
    digest: str = ""  # of its numbers: a server made again can give a name another meaning
    number: int = 0
    run: str | None = None
    plan: str | None = None
    made_of: str = ""  # digest of the version that a personal model was made of
    at: float
    accepted: bool = True
    reason: str = ""

    @property
    def version(self) -> str:
        """Digest of the version that it is or was made of; empty for what knows none."""
        return self.digest if self.kind == "federated" else self.made_of

    def of(self, plan: Plan) -> bool:
        """Whether it is a version of a plan or was made of one; older lists know its run's name alone."""
        return self.run == plan.name and self.plan in (None, plan.hash.hex())


class Models(Settings):
    """``models.json``.  ``chosen``: what the hold-out likes best; ``pinned``: what a person wants in its place;
    ``served``: what ``nexus`` means to clients, which changes only when a person says so; ``indexed``: what search
    answers from, and what the index is being made for; ``gone``: names held before, with the digest of each, empty
    where that is not known; ``withdrawn``: digests of versions that the server says are out of use.
    ``why`` was it chosen, and ``chosen_for`` names the rows, version and policy of the last comparison.
    """

    held: tuple[Held, ...] = ()
    chosen: str = BASE
    why: str = ""
    chosen_for: str = ""
    pinned: str | None = None
    served: str | None = None
    indexed: tuple[str, ...] = ()
    gone: dict[str, str] = Field(default_factory=dict)
    withdrawn: tuple[str, ...] = ()

    @field_validator("gone", mode="before")
    @classmethod
    def _without_digests(cls, gone: object) -> object:
        """Older lists have names alone."""
        return dict.fromkeys(gone, "") if isinstance(gone, list | tuple) else gone

    @property
    def in_use(self) -> str:
        """What search answers from."""
        return self.pinned or self.chosen

    @property
    def reason(self) -> str:
        """Why that is in use."""
        if self.pinned is None:
            return self.why or "nothing else was judged here yet"
        return f"a person said so; the hold-out would choose {self.chosen}"

    def named(self, name: str) -> Held | None:
        """A held model by its full name."""
        return next((one for one in self.held if one.name == name), None)

    def like(self, digest: str, kind: Kind) -> Held | None:
        """The held model of a kind whose numbers have this digest."""
        return next((one for one in self.held if one.kind == kind and one.digest == digest), None)

    def digest(self, name: str) -> str:
        """Names a held model's numbers; empty for the base model and for what is not held."""
        held = self.named(name)
        return held.digest if held else ""

    def require(self, name: str) -> str:
        """The name, where it is held; else Gone or NexusError."""
        if name == BASE or self.named(name):
            return name
        if name in self.gone:
            raise Gone(f"model {name!r} is no longer held here{self.known}")
        raise NexusError(f"there is no model {name!r} here{self.known}")

    def resolve(self, asked: str) -> str:
        """The full name of what a person or client asks for: a name, a kind (its newest), or a version's number."""
        if asked in KINDS:
            of_kind = [one for one in self.held if one.kind == asked]
            if not of_kind:
                remedy = "" if asked == "federated" else "; `nexus-client evaluate` makes it"
                raise NexusError(f"there is no {asked} model here yet{remedy}{self.known}")
            return of_kind[-1].name
        if re.fullmatch(r"\d{1,6}", asked):
            found = [one.name for one in self.held if one.kind == "federated" and one.number == int(asked)]
            gone = [name for name in self.gone if name.endswith(f"-{int(asked)}")]
            if len(found) + len(gone) > 1:
                raise NexusError(f"{asked} could be {', '.join([*found, *gone])}: give the whole name")
            return self.require(next(iter([*found, *gone]), asked))
        return self.require(asked)

    @property
    def known(self) -> str:
        """What is here, for the end of an error."""
        return "; here are: " + ", ".join([BASE, *(one.name for one in self.held)])

    def with_held(self, new: Held) -> "Models":
        """With a new model; the oldest of its kind go that nobody uses."""
        held = [*(one for one in self.held if one.name != new.name), new]
        of_kind = [one.name for one in held if one.kind == new.kind]
        accepted = [one.name for one in held if one.kind == new.kind and one.accepted]
        used = {self.chosen, self.pinned, self.served, *self.indexed, *accepted[-1:]}
        gone = {name: digest for name, digest in self.gone.items() if name != new.name}
        with_it = self.model_copy(update={"held": tuple(held), "gone": gone})
        return with_it._without(set(of_kind[:-KEPT]) - used)

    def accepting(self, name: str, reason: str) -> "Models":
        """With a held model that counts as accepted."""
        new = {"accepted": True, "reason": reason}
        held = (one.model_copy(update=new) if one.name == name else one for one in self.held)
        return self.model_copy(update={"held": tuple(held)})

    def called_back(self, plan: Plan, above: int) -> "Models":
        """Without versions of a plan beyond one, and without what was made of them."""
        return self._taken_back({held.name for held in self.held if held.of(plan) and held.number > above})

    def without_withdrawn(self, digests: tuple[str, ...]) -> "Models":
        """Without the versions of these digests, and without what was made of them, now and later.

        A personal model of which nobody can tell goes too, where there are any: it is made again.
        """
        gone = {*digests, UNKNOWN} if digests else set()
        names = {held.name for held in self.held if self._rests_on(held) in gone}
        return self.model_copy(update={"withdrawn": digests})._taken_back(names)

    def _rests_on(self, held: Held) -> str:
        """Digest of a model's version; of a personal model of an older list, by its number."""
        if held.kind != "personal" or held.made_of:
            return held.version
        same = (held.run, held.plan, held.number)
        versions = (one for one in self.held if one.kind == "federated" and (one.run, one.plan, one.number) == same)
        return next((one.digest for one in versions), UNKNOWN)

    def _taken_back(self, names: set[str]) -> "Models":
        """Without some models; what was chosen falls back to its run's newest version that is left and was accepted."""
        chosen, left = self.named(self.chosen), self._without(names)
        if chosen is None or left.chosen == self.chosen:
            return left
        of_run = [held for held in left.held if (held.run, held.plan) == (chosen.run, chosen.plan)]
        taken = [held for held in of_run if held.kind == "federated" and held.accepted]
        why = "the server has taken back what was chosen before"
        back = max(taken, key=lambda held: held.number).name if taken else BASE
        return left.model_copy(update={"chosen": back, "why": why, "chosen_for": ""})

    def _without(self, names: set[str]) -> "Models":
        """Without some models; what was chosen or pinned among them falls back to the base model.

        What ``nexus`` means does not: clients hear that it is gone, until a person says what it means from now on.
        """
        gone = self.gone | {name: self.digest(name) for name in sorted(names)}
        changes: dict[str, object] = {
            "held": tuple(one for one in self.held if one.name not in names),
            "gone": dict(list(gone.items())[-REMEMBERED:]),
        }
        if self.chosen in names:
            changes["chosen"] = BASE
        if self.pinned in names:
            changes["pinned"] = None
        return self.model_copy(update=changes)


class Gone(NexusError):
    """A model that was held here and is not any more."""
