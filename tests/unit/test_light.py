"""The frozen encoder and the adapter without torch: the same numbers as with it, in a process that has none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nexus_client import board_bench, index_updates
from nexus_client.embed import default_base
from nexus_client.encoder_file import encoder_file
from nexus_client.light import Encoded, LightEncoder
from nexus_client.light_adapter import PLAIN, LightAdapter, unit
from nexus_common.adapter import DendriticAdapter, unpadded
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, Layout

TEXTS = ["chest pain", "", "The patient has had a cough for three weeks, and no fever.", "word " * 400]


@pytest.fixture(scope="module")
def encoder(graphs: Path) -> LightEncoder:
    return LightEncoder(encoder_file(default_base(), graphs, "fp32"), default_base(), 2)


def some_vector(layout: Layout, seed: int = 0) -> np.ndarray:
    """Near the one at birth, but everything in it at work."""
    rng = np.random.default_rng(seed)
    return (layout.first_vector(b"seed") + rng.normal(0, 0.05, layout.dim)).astype(np.float32)


def test_base_embeddings_and_token_states_are_those_of_sentence_transformers(encoder: LightEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(default_base()), device="cpu", local_files_only=True)
    pieces = encoder.pieces(TEXTS)
    assert pieces.cut == [False, False, False, True]
    assert len(pieces.ids[3]) == encoder.most_pieces == model.max_seq_length == 256
    np.testing.assert_allclose(encoder.base_embeddings(TEXTS), model.encode(TEXTS), atol=2e-6)
    for ids, theirs in zip(pieces.ids, model.encode(TEXTS, output_value="token_embeddings"), strict=True):
        states = encoder.encode(ids, states=True).states
        assert states is not None
        np.testing.assert_allclose(states, theirs[: len(ids)].numpy(), atol=2e-5)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("salience", [None, 0, 1, 2])
@pytest.mark.parametrize("projection", [0, 1, 2])
def test_an_adapter_gives_what_torch_gives(projection: int, salience: int | None, activation: str) -> None:
    layout = Layout(projection, salience, activation)  # type: ignore[arg-type]
    vector, rng = some_vector(layout), np.random.default_rng(1)
    states, mask = rng.normal(size=(3, 5, WIDTH)).astype(np.float32), np.ones((3, 5), np.float32)
    base = unit(rng.normal(size=(3, WIDTH)).astype(np.float32))
    theirs = DendriticAdapter(layout).load_vector(vector)
    given = (
        (torch.from_numpy(base),) if salience is None else unpadded(torch.from_numpy(states), torch.from_numpy(mask))
    )
    with torch.inference_mode():
        right = theirs(*given).numpy()
    ours = LightAdapter(layout, vector)
    x = np.stack([ours.pool(Encoded(*text)) for text in zip(base, states, strict=True)])
    np.testing.assert_allclose(ours.project(x), right, atol=1e-5)
    if ours.linear:
        turned, offset = ours.turned(right[0])
        np.testing.assert_allclose((x @ turned + offset) / ours.norms(x), right @ right[0], atol=1e-5)


def test_models_with_the_same_salience_share_a_head() -> None:
    plain, with_head = Layout(), Layout(0, 1)
    first, other = some_vector(with_head), some_vector(with_head, 2)
    projected = first.copy()
    projected[-5:] += 1
    assert LightAdapter(plain, some_vector(plain)).head == PLAIN
    assert LightAdapter(with_head, first).head == LightAdapter(with_head, projected).head
    assert LightAdapter(with_head, first).head != LightAdapter(with_head, other).head


def test_a_text_has_the_same_vector_in_whatever_company(graphs: Path) -> None:
    light = LightEncoder(encoder_file(default_base(), graphs, "int8"), default_base(), 2)
    together = light.base_embeddings(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(light.base_embeddings([text])[0], vector)
    exact = LightEncoder(encoder_file(default_base(), graphs, "fp32"), default_base(), 2).base_embeddings(TEXTS)
    assert ((together * exact).sum(axis=1) > 0.97).all()


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "encoder-int8.onnx").write_bytes(b"no graph")
    with pytest.raises(NexusError, match=r"encoder-int8\.onnx cannot be read .* it is made again"):
        LightEncoder(tmp_path / "encoder-int8.onnx", default_base(), 1)


def test_what_a_killed_process_left_in_the_making_goes_and_what_another_one_makes_stays(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = [tmp_path / f"making.{killed.pid}.{end}.onnx" for end in ("fp32", "int8", "fp32.shaped")]
    alive = [tmp_path / f"making.{os.getpid()}.fp32.onnx", tmp_path / "making.of.mine"]
    for file in (*left, *alive, tmp_path / "encoder-int8.onnx"):
        file.write_bytes(b"a graph")
    assert encoder_file(default_base(), tmp_path, "int8").read_bytes() == b"a graph"
    assert {*tmp_path.iterdir()} == {*alive, tmp_path / "encoder-int8.onnx"}


def test_a_process_that_searches_or_serves_loads_no_torch() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "flwr", "scipy"}
    script = f"import sys, nexus_client.light_adapter; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_child_process_takes_no_code_from_the_folder_that_a_command_is_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nexus_client").mkdir()
    (tmp_path / "nexus_client" / "__init__.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NexusError, match="could not be written as"):
        encoder_file(tmp_path / "no base", tmp_path / "graphs", "fp32")
    with board_bench._child(["nothing"], 1) as said:
        said.read()
    subprocess.run([*index_updates.PROGRAM, "--help"], stdout=subprocess.DEVNULL, check=True)
    assert not (tmp_path / "taken").exists()
