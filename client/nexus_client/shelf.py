"""The models that a site holds: which came, which is chosen, which a person pinned, and what each is called.

``base`` is the untouched base model.  A federated version is called RUN-NUMBER (``winter-6``), a model that this site
made KIND-HASH (``personal-1f3a9c20``), so a name means the same numbers for ever: vectors made under it never change
under a client.  Model files are written before the list that names them, so a crash leaves the old list or the new.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nexus_common.audit import AuditLog
from nexus_common.disk import one_at_a_time, write_durably
from nexus_common.errors import NexusError
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter
from pydantic import ValidationError

from nexus_client.model_list import BASE, Gone, Held, Kind, Models
from nexus_client.site import SiteHome

log = logging.getLogger(__name__)
DIGITS: Final = 16


class Damaged(NexusError):
    """The list of the models cannot be read."""


class Shelf:
    """All of a site's models; each change is one new ``models.json``, whichever process makes it.

    The audit log says what was chosen and why, and what the server has taken back.
    """

    def __init__(self, place: SiteHome) -> None:
        self.folder = place.state / "models"
        self.file = self.folder / "models.json"
        self._log = AuditLog(place.audit_file)

    @property
    def models(self) -> Models:
        """What is held now; Damaged where the list cannot be read."""
        try:
            return Models.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return Models()
        except (OSError, ValidationError) as problem:
            raise Damaged(
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

    def usable(self, name: str, base: str) -> StoredAdapter | None:
        """A held model, as ``load`` gives it; NexusError where it was made for another base model than this hash's."""
        found = self.load(name)
        if found is not None and found.recipe.base_model != base:
            raise NexusError(
                f"model {name!r} belongs to base model {found.recipe.base_model[:12]}…, this site has {base[:12]}…; "
                "set base_model in site.toml to that one, or `nexus-client use` another"
            )
        return found

    def put(
        self,
        adapter: StoredAdapter,
        kind: Kind,
        *,
        accepted: bool,
        reason: str,
        chosen: bool = False,
        made_of: StoredAdapter | None = None,
    ) -> str:
        """Keep a model, and no more than ``KEPT`` of its kind beside those in use; its name.

        With ``chosen`` it becomes what is chosen, in the same instant.  ``made_of`` is the version that a personal one
        was made of.  Gone where the server has withdrawn that, or the model itself.
        """
        name, digest = name_of(adapter, kind), digest_of(adapter)
        plan = adapter.recipe if isinstance(adapter.recipe, Plan) and kind != "alone" else None
        with self._alone():
            models = self.models
            known = models.digest(name) or models.gone.get(name, digest)
            if kind == "federated" and known != digest:
                name = f"{name}-{digest[:8]}"  # of a server that was made again, or of one that lies
            held = Held(
                name=name, kind=kind, digest=digest, number=adapter.number, run=plan.name if plan else None,
                plan=plan.hash.hex() if plan else None, at=time.time(), accepted=accepted, reason=reason,
                made_of=digest_of(made_of) if made_of else "",
            )  # fmt: skip
            if held.version in models.withdrawn:
                raise Gone(f"model {name!r} was taken back by the server")
            adapter.write(self.file_of(name))
            choice = {"chosen": name, "why": reason} if chosen else {}
            self._write(lambda old: old.model_copy(update=choice).with_held(held))
        return name

    def accept(self, name: str, reason: str) -> None:
        """The hold-out takes a held model after all; Gone where it was called back meanwhile."""
        with self._alone():
            self.require(name)
            self._write(lambda old: old.accepting(name, reason))

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

    def indexing(self, names: Iterable[str]) -> None:
        """What search answers from, and what the index is being made for: they stay for as long."""
        indexed = tuple(sorted(set(names) - {BASE}))
        if indexed != self.models.indexed:
            with self._alone():
                self._write(lambda old: old.model_copy(update={"indexed": indexed}))

    def call_back(self, plan: Plan, above: int) -> None:
        """Take versions of a plan beyond one out of use, and what was made of them: the server has withdrawn them."""
        if not any(held.of(plan) and held.number > above for held in self.models.held):
            return
        with self._alone():
            self._remove(lambda old: old.called_back(plan, above))

    def withdraw(self, hashes: Sequence[str]) -> None:
        """Take versions out of use, and what was made of them, for as long as the server names them.

        ``hashes`` are all that it names now (``vector_hash``).  They are of versions that it has sent; a model that
        this site made alone is none.
        """
        digests = tuple(sorted(one[:DIGITS] for one in hashes))
        if digests != self.models.withdrawn:
            with self._alone():
                self._remove(lambda old: old.without_withdrawn(digests))
            self._log.append("withdrawals heard", versions=len(digests))  # a line, so that ever new lists become slow

    def require(self, name: str) -> str:
        """The name, where it is held; else Gone or NexusError."""
        return self.models.require(name)

    def resolve(self, asked: str) -> str:
        """The full name of what a person or client asks for: a name, a kind (its newest), or a version's number."""
        return self.models.resolve(asked)

    def file_of(self, name: str) -> Path:
        """Where a model's numbers lie."""
        return self.folder / f"{name}.safetensors"

    def _remove(self, change: Callable[[Models], Models]) -> None:
        """Done before it is logged, since it must not wait for the log."""
        before, models = self.models, change(self.models)
        self._replace(models)
        if names := [held.name for held in before.held if not models.named(held.name)]:
            log.warning("the server has taken back %s; in use: %s", ", ".join(names), models.in_use)
            self._log.append("models taken back", models=names, in_use=models.in_use)
        self._note_choice(before, models)

    def _write(self, change: Callable[[Models], Models]) -> None:
        models = change(self.models)
        self._note_choice(self.models, models)
        self._replace(models)

    def _note_choice(self, before: Models, models: Models) -> None:
        """What a person pins the log says as ``use``, and who it was."""
        if models.chosen != before.chosen:
            chosen = {"model": models.chosen, "before": before.chosen, "reason": models.why}
            self._log.append("model chosen", **chosen, in_use=models.in_use)

    def _replace(self, models: Models) -> None:
        write_durably(self.file, models.model_dump_json().encode())
        wanted = {self.file_of(one.name) for one in models.held}
        for file in set(self.folder.glob("*.safetensors")) - wanted:
            file.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with one_at_a_time(self.folder):
            yield


def name_of(adapter: StoredAdapter, kind: Kind) -> str:
    """What a model is called, unless another one had that name here."""
    if kind == "federated":
        return f"{adapter.plan.name}-{adapter.number}"
    return f"{kind}-{adapter.digest[:8]}"


def digest_of(adapter: StoredAdapter) -> str:
    """Names a model's numbers."""
    return adapter.digest[:DIGITS]
