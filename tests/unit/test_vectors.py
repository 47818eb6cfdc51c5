"""Vector files named by their content: what is stored comes back, under the same name everywhere."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from nexus_common.errors import NexusError
from nexus_server.vectors import VectorFiles

VALUES = st.sampled_from([np.float32, np.float64]).flatmap(lambda kind: arrays(kind, array_shapes(max_dims=2)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> VectorFiles:
    return VectorFiles(tmp_path_factory.mktemp("state") / "versions")


@given(vectors=st.dictionaries(st.text(min_size=1, max_size=9), VALUES, max_size=3))
def test_named_vectors_come_back_bit_for_bit(files: VectorFiles, vectors: dict[str, np.ndarray]) -> None:
    vectors.pop("__metadata__", None)
    found = files.load(files.store(vectors))
    assert {key: (value.dtype, value.tobytes()) for key, value in found.items()} == {
        key: (value.dtype, value.tobytes()) for key, value in vectors.items()
    }


def test_the_name_is_of_the_content(files: VectorFiles) -> None:
    name = files.store({"vector": np.arange(3, dtype=np.float32)})
    assert name == files.store({"vector": np.arange(3, dtype=np.float32)})
    assert name != files.store({"vector": np.arange(3, dtype=np.float64)})
    assert name == "1073254f3d9abe3595891f7411b51db04636202e3967e57839bf8c23fdf2f92e"


def test_the_folder_is_its_owners_alone(files: VectorFiles) -> None:
    assert files.folder.stat().st_mode & 0o777 == 0o700


def test_what_was_deleted_is_missing_and_deleting_again_is_nothing(files: VectorFiles) -> None:
    name = files.store({"vector": np.ones(2)})
    files.delete(name)
    files.delete(name)
    with pytest.raises(NexusError, match=f"{name}.safetensors is missing"):
        files.load(name)


@pytest.mark.parametrize("change", [lambda b: b"", lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[::-1]])
def test_a_changed_file_is_named(tmp_path: Path, change) -> None:
    files = VectorFiles(tmp_path)
    name = files.store({"vector": np.ones(2)})
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(NexusError, match=f"{name}.safetensors was changed"):
        files.load(name)
