"""Which sites to leave alone for a while: one that refuses or is stuck must not hold up every round."""

import time
from typing import Final

FIRST_SECONDS: Final = 15.0
LONGEST_SECONDS: Final = 600.0


class Pauses:
    """Pauses by site, each twice as long as the one before, until the site has done well or has come anew."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # site -> end of the pause, its length

    def begin(self, site: str) -> None:
        """Leave a site alone for a while."""
        pause = min(2 * self.length(site) or FIRST_SECONDS, LONGEST_SECONDS)
        self._until[site] = (time.monotonic() + pause, pause)

    def over(self, site: str) -> bool:
        """Whether a site may be asked."""
        return self._until.get(site, (0.0, 0.0))[0] <= time.monotonic()

    def length(self, site: str) -> float:
        """Seconds of a site's last pause, 0 where it had none."""
        return self._until.get(site, (0.0, 0.0))[1]

    def forget(self, site: str) -> None:
        """The next pause is a first one again."""
        self._until.pop(site, None)

    def forget_all(self) -> None:
        """All begin anew."""
        self._until.clear()
