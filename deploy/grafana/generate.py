"""`make dashboards`: the dashboards' JSON, which Grafana reads from files; nothing of NEXUS runs this."""

import sys
from pathlib import Path

from consortium_board import consortium
from site_board import site

HERE = Path(__file__).resolve().parent


def main(folder: Path) -> None:
    """Write both into ``folder``."""
    for name, made in (("nexus-consortium.json", consortium()), ("nexus-site.json", site())):
        (folder / name).write_text(made)
        print(f"{folder / name}: {made.count(chr(10))} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboards")
