"""A model as one ONNX graph, from token ids to the adapted and the base model's embedding; and what runs it.

The adapter is grafted onto the frozen encoder's graph (``encoder_file.py``), after that was quantised: the adapter
itself stays float32.  Its arithmetic is that of ``adapter.py``, operator by operator.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from nexus_common.layout import WIDTH, Layout, Vector
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nexus_client.encoder_file import INPUTS, OUTPUTS

ADAPTED = "sentence_embedding"
(IDS, MASK), (TOKENS, BASE) = INPUTS, OUTPUTS
OPERATOR: Final = {"tanh": "Tanh", "sigmoid": "Sigmoid"}
RUN_AT_ONCE: Final = 16  # texts


class _Graft:
    """Nodes and constants that are added to a graph, each under a name of its own."""

    def __init__(self, layout: Layout, entries: dict[str, Vector]) -> None:
        self.layout, self.nodes, self.constants = layout, list[Any](), list[Any]()
        self._entries, self._named = entries, set[str]()

    def entry(self, name: str) -> str:
        """A parameter of the adapter; of the salience head's, which multiply from the right, [384, 1]."""
        value = self._entries[name]
        turned = name.startswith("salience.") and value.shape == (1, WIDTH)
        return self.constant(name, value.T if turned else value)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An array, whose name it returns."""
        if name not in self._named:
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"adapter.{name}"))
            self._named.add(name)
        return f"adapter.{name}"

    def add(self, operator: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """A node; the name of what it gives."""
        out = out or f"adapter.node.{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, list(inputs), [out], name=f"graft_{len(self.nodes)}", **attributes)
        )
        return out

    def salience(self) -> str:
        """Token states [batch, tokens, 384] to x [batch, 384]: their sum weighted by the gate, normalised."""

        def drives(name: str) -> str:
            return self.add("MatMul", TOKENS, self.entry(f"salience.{name}weight"))

        gate = self.add("Sigmoid", self._layer("salience", self.layout.salience or 0, drives))  # [batch, tokens, 1]
        axis = self.constant("last", np.array([-1], np.int64))
        mask = self.add("Cast", self.add("Unsqueeze", MASK, axis), to=TensorProto.FLOAT)
        weighted = self.add("Mul", self.add("Mul", gate, mask), TOKENS)
        total = self.add("ReduceSum", weighted, self.constant("tokens", np.array([1], np.int64)), keepdims=0)
        return self.add("LpNormalization", total, axis=-1, p=2)

    def projection(self, x: str) -> None:
        """x [batch, 384] to the adapted embedding."""

        def drives(name: str) -> str:
            parts = (self.entry(f"projection.{name}{part}") for part in ("weight", "bias"))
            return self.add("Gemm", x, *parts, transB=1)

        y = self._layer("projection", self.layout.projection, drives)
        self.add("LpNormalization", y, out=ADAPTED, axis=-1, p=2)

    def _layer(self, place: str, dendrites: int, drives: Callable[[str], str]) -> str:
        """y = W x + b + sum_i t_i d_i, where ``drives`` gives W x + b of the layer ("") or of a dendrite."""
        active, y = list[str](), drives("")
        for i in range(dendrites):
            total = drives(f"dendrites.{i}.")
            for j, earlier in enumerate(active):
                link = self.constant(f"{place}.link.{i}.{j}", self._entries[f"{place}.links.{i - 1}"][j])
                total = self.add("Add", total, self.add("Mul", link, earlier))
            active.append(self.add(OPERATOR[self.layout.activation], total))
        for i, one in enumerate(active):
            y = self.add("Add", y, self.add("Mul", self.entry(f"{place}.tops.{i}"), one))
        return y


def graft(encoder: Path, file: Path, adapter: tuple[Layout, Vector] | None) -> None:
    """Write the encoder's graph with an adapter (None: without) to ``file``, outputs ``sentence_embedding`` first."""
    model = onnx.load(encoder)
    if adapter is None:
        nodes, constants = [helper.make_node("Identity", [BASE], [ADAPTED], name="graft_0")], []
    else:
        layout, vector = adapter
        made = _Graft(layout, layout.split(vector))
        made.projection(BASE if layout.salience is None else made.salience())
        nodes, constants = made.nodes, made.constants
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in (ADAPTED, BASE)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, file)


class Runner:
    """A written graph with its tokenizer, as somebody without NEXUS runs it."""

    def __init__(self, graph: Path, tokenizer: Path, threads: int) -> None:
        import onnxruntime  # noqa: PLC0415
        from tokenizers import Tokenizer  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(tokenizer))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, 384] of length 1; like lengths go together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.empty((len(texts), WIDTH), np.float32)
        for start in range(0, len(order), RUN_AT_ONCE):
            part = order[start : start + RUN_AT_ONCE]
            found = self.tokenizer.encode_batch([texts[i] for i in part])
            ids, mask = ([getattr(one, name) for one in found] for name in ("ids", "attention_mask"))
            out[part] = self.run(np.array(ids, np.int64), np.array(mask, np.int64))
        return out

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask, both [batch, tokens], to embeddings [batch, 384]."""
        found: NDArray[np.float32] = self.session.run([ADAPTED], {IDS: ids, MASK: mask})[0]
        return found


def write_tokenizer(base: Path, file: Path, most_tokens: int) -> None:
    """The base model's tokenizer, cutting where the model cuts and filling up to a batch's longest text."""
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    filled = tokenizer.padding or {}
    tokenizer.enable_truncation(most_tokens)
    tokenizer.enable_padding(pad_id=filled.get("pad_id", 0), pad_token=filled.get("pad_token", "[PAD]"))
    file.write_text(tokenizer.to_str(), encoding="utf-8")
