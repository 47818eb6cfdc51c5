"""nexus-client's agent whose pauses are a sixtieth: what an hour is to it, is a minute's matter here."""

import sys

from nexus_client import link
from nexus_client.cli import main
from nexus_common import flower

link.FIRST_PAUSE_SECONDS, link.LONGEST_PAUSE_SECONDS = 0.05, 0.5  # type: ignore[misc]
flower.HEARTBEAT_SECONDS = 0.5  # type: ignore[misc]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
