"""The adapter grafted onto a graph computes what ``adapter.py`` computes, whatever the mask."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from nexus_client.onnx_graph import graft
from nexus_common.adapter import DendriticAdapter, unpadded
from nexus_common.layout import WIDTH, Layout
from onnx import TensorProto, helper, numpy_helper

from tests.unit.vectors import lively

TABLE = np.random.default_rng(5).standard_normal((20, WIDTH)).astype(np.float32)
IDS = np.arange(12, dtype=np.int64).reshape(3, 4)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], np.int64)
SHAPE = ["batch", "tokens"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with the inputs and outputs of the real one: a table look-up, and the mean."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["token_embeddings"]),
        helper.make_node("Cast", ["attention_mask"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["mask"]),
        helper.make_node("Mul", ["token_embeddings", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["base_embedding"], axis=-1, p=2),
    ]
    arrays = {"table": TABLE, "last": np.array([-1]), "middle": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, SHAPE) for name in ("input_ids", "attention_mask")],
        [
            helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, [*SHAPE, WIDTH]),
            helper.make_tensor_value_info("base_embedding", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    file = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def run(file: Path) -> list[np.ndarray]:
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file))
    assert [one.name for one in session.get_outputs()] == ["sentence_embedding", "base_embedding"]
    found: list[np.ndarray] = session.run(None, {"input_ids": IDS, "attention_mask": MASK})
    return found


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("salience", [None, 0, 2])
@pytest.mark.parametrize("projection", [0, 1, 2])
def test_it_computes_the_adapter(
    encoder: Path, tmp_path: Path, projection: int, salience: int | None, activation: str
) -> None:
    layout = Layout(projection, salience, activation)  # type: ignore[arg-type]
    vector = lively(layout)
    graft(encoder, tmp_path / "model.onnx", (layout, vector))
    adapted, base = run(tmp_path / "model.onnx")
    adapter = DendriticAdapter(layout).load_vector(vector)
    with torch.inference_mode():
        if salience is None:
            right = adapter(torch.from_numpy(base)).numpy()
        else:
            right = adapter(*unpadded(torch.from_numpy(TABLE[IDS]), torch.from_numpy(MASK))).numpy()
    assert np.abs(adapted - right).max() < 1e-6
    assert not base[2].any(), "all of this text is masked"


def test_without_an_adapter_both_outputs_are_the_base_model(encoder: Path, tmp_path: Path) -> None:
    graft(encoder, tmp_path / "model.onnx", None)
    adapted, base = run(tmp_path / "model.onnx")
    np.testing.assert_array_equal(adapted, base)
