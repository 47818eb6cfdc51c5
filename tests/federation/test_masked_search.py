"""What a site encodes, searched for in all that the server holds: nothing is found, unless the site sends it bare."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.secagg import codec, keys
from nexus_common.secagg.masks import MaskedSum

from tests.federation.staged import FIVE, Site, Staged
from tests.federation.test_rounds import plan_of

pytestmark = pytest.mark.usefixtures("narrow")
ENCODE = codec.encode


class Notes(list[bytes]):
    """Parts of all that sites encode, back to front, so that a search does not find the notes; and the newest whole.

    The newest is of the thread that asks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @property
    def newest(self) -> bytes:
        """The last vector that was encoded here, packed."""
        return bytes(self._here.newest[::-1])

    def encode(self, *args: Any) -> codec.Integers:
        """``codec.encode``, listened to."""
        found = ENCODE(*args)
        self._here.newest = packed(found)[::-1]
        for part in (found[at : at + 64] for at in (100, 1000, 2000)):
            if not part.any():
                continue  # of a closing round
            ways = packed(part), part.tobytes(), part.astype("<u4").tobytes()
            self += [way[::-1] for way in ways]
        return found


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    made = Notes()
    monkeypatch.setattr(codec, "encode", made.encode)
    return made


def packed(integers: np.ndarray) -> bytes:
    total = MaskedSum(len(integers), 24)
    total.add(integers)
    return total.packed()


def buffers(hidden: list[bytes]) -> Iterator[Any]:
    """Whatever else holds bytes in this process's memory, in containers of any depth."""
    seen, ahead = set(map(id, hidden)), gc.get_objects()
    while ahead:
        one = ahead.pop()
        if id(one) not in seen:
            seen.add(id(one))
            if type(one) in (bytes, bytearray, np.ndarray):
                yield one
            else:
                ahead += gc.get_referents(one)


def places(notes: Notes, folder: Path) -> set[str]:
    """Where anything of what a site encoded is found: in memory, Flower's messages included, or on disk."""
    sought = [note[::-1] for note in notes]
    assert len(sought) >= 27
    memory = (bytes(one) for one in buffers(sought) if memoryview(one).nbytes >= 192)
    disk = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    where = {"disk": disk, "memory": memory}
    return {place for place, found in where.items() if any(note in data for data in found for note in sought)}


@pytest.mark.parametrize("masked", [True, False])
def test_what_a_site_encodes_is_nowhere_at_the_server_unless_the_site_sends_it_bare(
    tmp_path: Path, notes: Notes, masked: bool
) -> None:
    class Bare(Site):
        """Masks nothing."""

        def say(self, message: wire.Ask) -> wire.Message:
            made = super().say(message)
            if masked or not isinstance(made, wire.Masked):
                return made
            return wire.Masked(keys.signed(self.key, made.vector[:50] + notes.newest))

    federation = Staged(tmp_path, plan_of(FIVE[:3], rounds=2), bank_b=Bare)
    federation.grid.kept, found = [], list[set[str]]()
    federation.grid.hook = lambda *now: found.append(places(notes, tmp_path)) if now == ("after", "open") else None
    federation.turns(1)
    assert found == [set() if masked else {"memory"}], "no file has a single site's vector, masked or not"
    (tmp_path / "stray").write_bytes(b"..." + notes[0][::-1])
    assert "disk" in places(notes, tmp_path), "the search reads the folder"
