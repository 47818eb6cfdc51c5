"""A disk that is full in the middle of a build of the index: it is said, the old index answers, and it ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
from nexus_client import index_generation
from nexus_client.index import open_current
from nexus_client.index_build import building
from nexus_client.index_files import write_file
from nexus_client.light import LightEncoder
from nexus_common.errors import NexusError

from tests.processes.volume import needs_root, volume
from tests.sites import make_site, write_text

pytestmark = [pytest.mark.processes, needs_root]


@pytest.mark.parametrize("step", [LightEncoder.encode, write_file], ids=["encoding", "writing"])
@pytest.mark.parametrize("leave", [0, 20_000])
def test_a_full_disk_leaves_the_old_index_whole(
    tmp_path: Path, graphs: Path, step: Callable[..., object], leave: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with volume(tmp_path / "disk", 16) as disk:
        place = make_site(disk.path, graphs)
        with building(place) as build:
            build.run()
        write_text(place, [{"text": f"number {i} " + "x" * 200, "label": "x"} for i in range(100)])

        def filled(*values: object, **named: object) -> object:
            disk.fill(leave)
            return step(*values, **named)

        with monkeypatch.context() as patch, building(place) as build:
            where = LightEncoder if step is LightEncoder.encode else index_generation
            patch.setattr(where, step.__name__, filled)
            with pytest.raises((NexusError, OSError), match=r"MB are free|No space left") as told:
                build.run()
        assert "number" not in str(told.value)
        old = open_current(place.index_folder)
        assert old is not None
        assert "advice on chest pain" in old.texts
        disk.empty()
        with building(place) as build:
            assert build.run().rows == 100
