"""The models that a site holds: which came, which is chosen, which a person pinned, and what each is called.

``base`` is the untouched base model.  A federated version is called RUN-NUMBER (``winter-6``), a model that this site
made KIND-HASH (``personal-1f3a9c20``), so a name means the same numbers for ever: vectors made under it never change
under a client.  Model files are written before the list that names them, so a crash leaves the old list or the new.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from nexus_common import wire
from nexus_common.config import Settings
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter, vector_hash
from pydantic import ValidationError

from nexus_client.site import SiteHome

Kind = Literal["alone", "federated", "personal"]
KINDS: Final[tuple[Kind, ...]] = ("alone", "federated", "personal")
BASE: Final = "base"
KEPT: Final = 3  # of each kind: the newest and two before it
DIGITS: Final = 16
REMEMBERED: Final = 1000  # names of models that are no longer held


class Held(Settings):
    """A model that the site holds; ``accepted`` says whether the hold-out took it, ``reason`` why or why not."""

    name: str
    kind: Kind
    digest: str = ""  # of its numbers: a server made again can give a name another meaning
    number: int = 0
    run: str | None = None
    at: float
    accepted: bool = True
    reason: str = ""


class Models(Settings):
    """``models.json``.  ``chosen``: what the hold-out likes best; ``pinned``: what a person wants in its place;
    ``served``: what ``nexus`` means to clients, which changes only when a person says so; ``gone``: held before.
    ``why`` was it chosen, and ``chosen_for`` names the rows and version that all models were last compared on.
    """

    held: tuple[Held, ...] = ()
    chosen: str = BASE
    why: str = ""
    chosen_for: str = ""
    pinned: str | None = None
    served: str | None = None
    gone: tuple[str, ...] = ()

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

    def like(self, adapter: StoredAdapter, kind: Kind) -> Held | None:
        """The held model of a kind that has an adapter's numbers."""
        digest = digest_of(adapter)
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


class Gone(NexusError):
    """A model that was held here and is not any more."""


class Shelf:
    """All of a site's models; each change is one new ``models.json``, whichever process makes it."""

    def __init__(self, place: SiteHome) -> None:
        self.folder = place.state / "models"
        self.file = self.folder / "models.json"

    @property
    def models(self) -> Models:
        """What is held now; NexusError where the list cannot be read."""
        try:
            return Models.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return Models()
        except (OSError, ValidationError) as problem:
            raise NexusError(
                f"{self.file} cannot be read ({type(problem).__name__}); delete it: versions come again from the "
                "server, own models are trained again; `nexus-client use` says again what clients get"
            ) from None

    def load(self, name: str) -> StoredAdapter | None:
        """A held model; None for the base model, NexusError where there is none of this name."""
        if name == BASE:
            return None
        found = StoredAdapter.read(self.file_of(name)) if self.models.named(name) else None
        if found is None:
            raise NexusError(f"there is no model {name!r} here{self.models.known}")
        return found

    def put(self, adapter: StoredAdapter, kind: Kind, *, accepted: bool, reason: str, chosen: bool = False) -> str:
        """Keep a model, and no more than ``KEPT`` of its kind beside those in use; its name.

        With ``chosen`` it becomes what is chosen, in the same instant.
        """
        name, digest = name_of(adapter, kind), digest_of(adapter)
        run = adapter.plan.name if isinstance(adapter.recipe, Plan) and kind != "alone" else None
        with self._alone():
            models = self.models
            if kind == "federated" and (name in models.gone or models.digest(name) not in ("", digest)):
                name = f"{name}-{digest[:8]}"  # of a server that was made again, or of one that lies
            held = Held(
                name=name, kind=kind, digest=digest, number=adapter.number, run=run, at=time.time(), accepted=accepted,
                reason=reason,
            )  # fmt: skip
            adapter.write(self.file_of(name))
            choice = {"chosen": name, "why": reason} if chosen else {}
            self._write(lambda old: _pruned(old.model_copy(update=choice), held))
        return name

    def choose(self, name: str, why: str = "", chosen_for: str = "") -> None:
        """What the hold-out likes best, why, and what that rests on; Gone where it was called back meanwhile."""
        with self._alone():
            self.require(name)
            self._write(lambda old: old.model_copy(update={"chosen": name, "why": why, "chosen_for": chosen_for}))

    def pin(self, name: str | None) -> None:
        """What search and serve stay on; with None search follows what is chosen, and ``nexus`` becomes that."""
        with self._alone():
            if name is not None:
                self.require(name)
            self._write(lambda old: old.model_copy(update={"pinned": name, "served": name or old.chosen}))

    def serve(self) -> str:
        """What ``nexus`` means; where nobody has said so yet, it is what is in use, from now on."""
        if (served := self.models.served) is not None:
            return served
        with self._alone():
            self._write(lambda old: old.model_copy(update={"served": old.served or old.in_use}))
        return self.models.served or BASE

    def call_back(self, run: str, above: int) -> None:
        """Take versions of a run beyond one out of use, and what was made of them: the server has withdrawn them.

        What was chosen of them falls back to the run's newest version that is left and was accepted here.
        """
        if not any(_beyond(held, run, above) for held in self.models.held):
            return
        with self._alone():
            self._write(lambda old: _called_back(old, run, above))

    def require(self, name: str) -> str:
        """The name, where it is held; else Gone or NexusError."""
        return self.models.require(name)

    def resolve(self, asked: str) -> str:
        """The full name of what a person or client asks for: a name, a kind (its newest), or a version's number."""
        return self.models.resolve(asked)

    def file_of(self, name: str) -> Path:
        """Where a model's numbers lie."""
        return self.folder / f"{name}.safetensors"

    def _write(self, change: Callable[[Models], Models]) -> None:
        models = change(self.models)
        write_durably(self.file, models.model_dump_json().encode())
        wanted = {self.file_of(one.name) for one in models.held}
        for file in set(self.folder.glob("*.safetensors")) - wanted:
            file.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def name_of(adapter: StoredAdapter, kind: Kind) -> str:
    """What a model is called, unless another one had that name here."""
    if kind == "federated":
        return f"{adapter.plan.name}-{adapter.number}"
    return f"{kind}-{vector_hash(wire.pack(adapter.vector))[:8]}"


def digest_of(adapter: StoredAdapter) -> str:
    """Names a model's numbers."""
    return vector_hash(wire.pack(adapter.vector))[:DIGITS]


def _pruned(models: Models, new: Held) -> Models:
    """With a new model; the oldest of its kind go that nobody uses."""
    held = [*(one for one in models.held if one.name != new.name), new]
    of_kind = [one.name for one in held if one.kind == new.kind]
    accepted = [one.name for one in held if one.kind == new.kind and one.accepted]
    used = {models.chosen, models.pinned, models.served, *accepted[-1:]}
    return _without(models.model_copy(update={"held": tuple(held)}), set(of_kind[:-KEPT]) - used)


def _beyond(held: Held, run: str, above: int) -> bool:
    return held.run == run and held.number > above


def _called_back(models: Models, run: str, above: int) -> Models:
    left = _without(models, {held.name for held in models.held if _beyond(held, run, above)})
    if left.chosen == models.chosen:
        return left
    taken = [held for held in left.held if held.kind == "federated" and held.run == run and held.accepted]
    why = "the server has taken back what was chosen before"
    back = max(taken, key=lambda held: held.number).name if taken else BASE
    return left.model_copy(update={"chosen": back, "why": why, "chosen_for": ""})


def _without(models: Models, names: set[str]) -> Models:
    """Without some models; what was chosen or pinned among them falls back to the base model.

    What ``nexus`` means does not: clients hear that it is gone, until a person says what it means from now on.
    """
    held = {one.name for one in models.held}
    changes: dict[str, object] = {
        "held": tuple(one for one in models.held if one.name not in names),
        "gone": (*(name for name in models.gone if name not in names | held), *sorted(names))[-REMEMBERED:],
    }
    if models.chosen in names:
        changes["chosen"] = BASE
    if models.pinned in names:
        changes["pinned"] = None
    return models.model_copy(update=changes)
