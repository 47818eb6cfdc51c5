"""kill -9 in the middle of a build of the index: the old index is whole, and the next build finishes."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nexus_client.index import open_current
from nexus_client.index_build import building
from nexus_client.site import SiteHome
from nexus_common.layout import WIDTH

from tests.sites import make_site, write_text

pytestmark = pytest.mark.processes
ROWS = 40
INSTANTS = [
    "vectors kept,before,1",
    "vectors kept,after,2",
    "vectors pruned,after,1",
    "file written,before,1",
    "file written,after,1",
    "array written,before,2",
    "array written,after,2",
    "file written,after,2",
    "pointer set,before,1",
    "pointer set,after,1",
    "old ones removed,before,2",
]


def write(place: SiteHome, what: str) -> set[str]:
    """New text on every line; the passages."""
    texts = {f"{what} {i}" for i in range(ROWS)}
    write_text(place, [{"text": text, "label": "x"} for text in sorted(texts)])
    return texts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> SiteHome:
    made = make_site(tmp_path_factory.mktemp("killed"), graphs)
    write(made, "first")
    with building(made) as build:
        build.run()
    return made


def texts_of(place: SiteHome) -> set[str]:
    """What the current generation holds; all of it can be read."""
    found = open_current(place.index_folder)
    assert found is not None
    rows, scores = found.search("base", None, np.ones(WIDTH, np.float32), 5)
    assert len({found.passage(int(row)).text for row in rows}) == len(scores) == 5
    return found.texts


@pytest.mark.parametrize("instant", INSTANTS)
def test_the_old_index_or_the_new_is_there_and_the_next_build_finishes(place: SiteHome, instant: str) -> None:
    before, after = texts_of(place), write(place, instant)
    program = str(Path(__file__).parent / "dying_index.py")
    done = subprocess.run(
        [sys.executable, program, instant, "--home", str(place.settings_folder.parent), "index"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    swapped = instant.startswith(("pointer set,after", "old ones"))
    assert texts_of(place) == (after if swapped else before)
    with building(place) as build:
        kept = ROWS - len(build.missing)
        built = build.run()
    assert texts_of(place) == after
    assert built.changed != swapped
    assert kept == {"vectors kept,before,1": 0, "vectors kept,after,2": 32}.get(instant, ROWS), "what was encoded stays"
    assert len([one for one in place.index_folder.iterdir() if one.name.isdigit()]) == 1
