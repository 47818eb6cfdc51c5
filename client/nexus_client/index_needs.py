"""What a site's index has to be up to, found by looking at files' dates and the list of models alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nexus_client.corpus import stamp
from nexus_client.encoder_file import Precision
from nexus_client.index import Manifest
from nexus_client.model_list import BASE
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome, SiteSettings


@dataclass(frozen=True)
class Needed:
    """What the index has to be up to: ``models`` are names with the digest of each, ``marks`` say which file it is in;
    ``asked`` are those that only a person wanted in it.
    """

    base: str
    precision: Precision
    stamp: str
    models: Mapping[str, str]
    marks: Mapping[str, str]
    in_use: str
    asked: frozenset[str]

    def covered_by(self, made: Manifest | None) -> bool:
        """Whether a generation is still right."""
        return (
            made is not None
            and (self.base, self.precision, self.stamp, self.in_use)
            == (made.base, made.precision, made.stamp, made.in_use)
            and all(self._covers(made, name, digest) for name, digest in self.models.items())
        )

    def _covers(self, made: Manifest, name: str, digest: str) -> bool:
        """Whether a model is in it with these numbers, or could not be taken in as its file still is."""
        if name in made.models:
            return made.digests.get(name) == digest
        return name in made.left_out and made.marks.get(name) == self.marks[name]


def needed(place: SiteHome, settings: SiteSettings, base: str, made: Manifest | None, asked: Iterable[str]) -> Needed:
    """For the settings and base model of now; ``made`` is the current generation's manifest, where there is one."""
    shelf = Shelf(place)
    models = shelf.models
    wanted = {*asked, *(name for name in (made.asked if made else ()) if models.named(name))}
    served = {models.served} if models.served and models.named(models.served) else set[str]()
    names = sorted({BASE, models.in_use} | served | wanted)
    return Needed(
        base, settings.precision, stamp(settings.data, place.settings_folder),
        {name: models.digest(name) for name in names}, {name: _mark(shelf.file_of(name)) for name in names},
        models.in_use, frozenset(wanted),
    )  # fmt: skip


def _mark(file: Path) -> str:
    """Which file it is, by its date and size."""
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns} {found.st_size}"
