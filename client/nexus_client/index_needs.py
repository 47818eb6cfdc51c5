"""What a site's index has to be up to, found by looking at files' dates and the list of models alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from nexus_client.corpus import stamp
from nexus_client.encoder_file import Precision
from nexus_client.index import Manifest
from nexus_client.shelf import BASE, Shelf
from nexus_client.site import SiteHome, SiteSettings


@dataclass(frozen=True)
class Needed:
    """What the index has to be up to: ``models`` are names, ``asked`` those that only a person wanted in it."""

    base: str
    precision: Precision
    stamp: str
    models: frozenset[str]
    in_use: str
    asked: frozenset[str]

    def covered_by(self, made: Manifest | None) -> bool:
        """Whether a generation is still right."""
        return (
            made is not None
            and (self.base, self.precision, self.stamp, self.in_use)
            == (made.base, made.precision, made.stamp, made.in_use)
            and self.models <= made.models.keys() | made.left_out.keys()
        )


def needed(place: SiteHome, settings: SiteSettings, base: str, made: Manifest | None, asked: Iterable[str]) -> Needed:
    """For the settings and base model of now; ``made`` is the current generation's manifest, where there is one."""
    models = Shelf(place).models
    wanted = {*asked, *(name for name in (made.asked if made else ()) if models.named(name))}
    return Needed(
        base, settings.precision, stamp(settings.data, place.settings_folder),
        frozenset({BASE, models.in_use, models.served or BASE} | wanted), models.in_use, frozenset(wanted),
    )  # fmt: skip
