"""What ``serve`` answers from: the models and the index at one instant, immutable, replaced whole when either changes.

A request takes one snapshot at its start and keeps it, so an answer is never a mixture, and a swap fails no request:
models are in memory, and an index that is deleted stays mapped for as long as somebody reads it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nexus_common.errors import NexusError

from nexus_client.index import Generation, current_name, open_current
from nexus_client.light_adapter import LightAdapter
from nexus_client.light_models import light_model
from nexus_client.model_list import BASE, KINDS, Gone, Models
from nexus_client.search import answering
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome

log = logging.getLogger(__name__)
NEXUS: Final = "nexus"
"""The model that a person has pinned; ``nexus@NAME`` is any that is held."""


@dataclass(frozen=True)
class Snapshot:
    """``served`` is what ``nexus`` means; ``adapters`` are those of all models that can be used, ``unusable`` says why
    others cannot; ``generation`` is the index, None until there is one."""

    models: Models
    served: str
    adapters: Mapping[str, LightAdapter | None]
    unusable: Mapping[str, str]
    generation: Generation | None

    def model(self, asked: str) -> tuple[str, LightAdapter | None]:
        """The name and adapter that a client means; Gone or NexusError where there is none."""
        wanted = asked.removeprefix(f"{NEXUS}@")
        if asked == NEXUS:
            name = self.served
            if name != BASE and not self.models.named(name):
                raise Gone(
                    f"{NEXUS} means {name}, which is no longer held here, until a person says otherwise "
                    f"(`nexus-client use`){self.models.known}"
                )
        elif asked.startswith(f"{NEXUS}@") and wanted in KINDS:  # the next one of its kind would change the vectors
            now = self.models.resolve(wanted)
            raise NexusError(f"{asked} would change its vectors by itself; it is {NEXUS}@{now} now: ask for that")
        elif asked.startswith(f"{NEXUS}@"):
            name = self.models.resolve(wanted)
        else:
            raise NexusError(
                f"there is no model {asked[:100]!r}: ask for {NEXUS!r}, or {NEXUS}@NAME{self.models.known}"
            )
        if name in self.unusable:
            raise NexusError(self.unusable[name])
        return name, self.adapters[name]

    @property
    def searching(self) -> str | None:
        """The model that search answers from."""
        return None if self.generation is None else answering(self.models, self.generation, self.adapters)


class Snapshots:
    """The newest snapshot of a site, over the base model of this hash."""

    def __init__(self, place: SiteHome, base: str) -> None:
        self._place, self._base, self._shelf = place, base, Shelf(place)
        self._shelf.serve()  # now, since it may write the list that is looked at
        self._seen = self._look()
        self.current = self._take(None)

    def refresh(self) -> bool:
        """Take a new snapshot where models or index have changed; a list or an index that cannot be read changes
        nothing."""
        if (seen := self._look()) == self._seen:
            return False
        try:
            taken = self._take(self.current)
        except NexusError as problem:
            log.error("goes on as it was: %s", problem)
            self._seen = seen
            return False
        old, self.current, self._seen = self.current, taken, seen
        log.info("nexus is %s; search answers from %s (before: %s, %s)",
                 taken.served, taken.searching, old.served, old.searching)  # fmt: skip
        return True

    def _look(self) -> tuple[object, ...]:
        try:
            found = self._shelf.file.stat()
            return found.st_mtime_ns, found.st_ino, found.st_size, current_name(self._place.index_folder)
        except (OSError, NexusError):
            return (None,)

    def _take(self, old: Snapshot | None) -> Snapshot:
        served = self._shelf.serve()
        models = self._shelf.models
        adapters, unusable = dict[str, LightAdapter | None](), dict[str, str]()
        for name in (BASE, *(held.name for held in models.held)):
            if old is not None and name in old.adapters and old.models.digest(name) == models.digest(name):
                adapters[name] = old.adapters[name]
                continue
            try:
                adapters[name] = light_model(self._shelf, name, self._base)
            except NexusError as problem:
                unusable[name] = str(problem)
        generation = self._generation(old.generation if old else None)
        return Snapshot(models, served, adapters, unusable, generation)

    def _generation(self, old: Generation | None) -> Generation | None:
        """The current one; where it cannot be used the old one, until an update has made another."""
        if old is not None and old.name == current_name(self._place.index_folder):
            return old
        try:
            found = open_current(self._place.index_folder)
        except NexusError as problem:
            log.error("%s", problem)
            return old
        return found if found is not None and found.manifest.base == self._base else old
