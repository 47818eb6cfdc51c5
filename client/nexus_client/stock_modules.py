"""A model as a folder of stock sentence-transformers modules: it loads where NEXUS is not installed, and runs no code.

sentence-transformers 6 refuses every module class but its own unless code in the folder is trusted, so the adapter is
said with its ``Dense``, whose gated linear unit, GLU(a, g) = a * sigmoid(g), suffices for all of it, exactly:

    a dendrite       sigmoid(u) = GLU(1, u), and tanh(u) = 2 sigmoid(2 u) - 1; what passes by is GLU(x, 100) = x
    salience         GLU(h_t, v . h_t + ...) on token embeddings; the mean of these is normalised, so it weighs

Written by hand, since what a new version saves an old one cannot read: of this the names and keys are the old ones.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nexus_common.layout import WIDTH, Activation, Layout, Vector
from safetensors.numpy import save

TYPES: Final = "sentence_transformers.models"
GLU, IDENTITY = "torch.nn.modules.activation.GLU", "torch.nn.modules.linear.Identity"
OPEN: Final = 100.0  # sigmoid(100) is 1 in float32
TOKENS: Final = "token_embeddings"
COPIED: Final = {".json", ".txt", ".model", ".safetensors"}  # weights, tokenizer, configuration
DENDRITE: Final[dict[Activation, tuple[float, float, float]]] = {"tanh": (2.0, 2.0, -1.0), "sigmoid": (1.0, 1.0, 0.0)}
"""(k, m, c) of each activation: s(u) = m sigmoid(k u) + c."""


@dataclass(frozen=True)
class Dense:
    """activation(weight z + bias): weight [out, in], bias [out]; ``reads`` where that is not the pooled vector."""

    weight: Vector
    bias: Vector
    activation: str = IDENTITY
    reads: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``: keys that every version knows, and one of 5.4 where the module works on tokens."""
        out, into = self.weight.shape
        found = {"in_features": into, "out_features": out, "bias": True, "activation_function": self.activation}
        return found | ({"module_input_name": self.reads} if self.reads else {})

    def write(self, folder: Path) -> None:
        """Configuration and weights."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))
        tensors = {"linear.weight": np.ascontiguousarray(self.weight), "linear.bias": self.bias}
        (folder / "model.safetensors").write_bytes(save(tensors))


def write_folder(base: Path, folder: Path, adapter: tuple[Layout, Vector] | None) -> None:
    """Write base model and adapter (None: the base model alone) into an empty folder."""
    modules = json.loads((base / "modules.json").read_text())
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name != "modules.json":
            shutil.copyfile(path, folder / path.name)
    kept, added = modules, list[Dense | str]()
    if adapter is not None:
        layout, vector = adapter
        entries = layout.split(vector)
        if layout.salience is not None:  # it pools in the base model's place
            kept, added = modules[:1], [*salience_modules(entries, layout), "Pooling", "Normalize"]
        added += [*projection_modules(entries, layout), "Normalize"]
    for module in kept:
        if (base / module["path"]).is_dir() and module["path"]:  # what has no configuration may have no folder
            shutil.copytree(base / module["path"], folder / module["path"], copy_function=shutil.copyfile)
    listed = [*kept]
    for i, one in enumerate(added, len(kept)):
        kind = one if isinstance(one, str) else "Dense"
        path = folder / f"{i}_{kind}"
        listed.append({"idx": i, "name": str(i), "path": path.name, "type": f"{TYPES}.{kind}"})
        path.mkdir()
        if isinstance(one, Dense):
            one.write(path)
        elif one == "Pooling":
            (path / "config.json").write_text(json.dumps(_mean_pooling(), indent=2))
    (folder / "modules.json").write_text(json.dumps(listed, indent=2))


def projection_modules(entries: dict[str, Vector], layout: Layout) -> list[Dense]:
    """x [384] to y [384], before it is normalised."""
    dendrites, weight, bias = _layer(_of("projection", entries), WIDTH, layout.projection, layout.activation)
    return [*dendrites, Dense(weight, bias)]


def salience_modules(entries: dict[str, Vector], layout: Layout) -> list[Dense]:
    """Each token's h [384] to sigmoid(v . h + dendrites) h."""
    dendrites, weight, bias = _layer(_of("salience", entries), 1, layout.salience or 0, layout.activation, TOKENS)
    through = np.zeros((WIDTH, weight.shape[1]), np.float32)
    through[:, -WIDTH:] = np.eye(WIDTH)
    gate = np.concatenate([through, np.repeat(weight, WIDTH, axis=0)])  # [768, dendrites + 384]
    return [*dendrites, Dense(gate, np.repeat([0, bias[0]], WIDTH).astype(np.float32), GLU, TOKENS)]


def _layer(
    entries: dict[str, Vector], out: int, dendrites: int, activation: Activation, reads: str | None = None
) -> tuple[list[Dense], Vector, Vector]:
    """A dendritic layer x [384] -> y [out] as modules x -> z = [s_1 .. s_D, x], and the weight and bias of y from z.

    Each module adds one dendrite's s_i = sigmoid(k u_i), [out], before x; d_i = m s_i + c is written into what reads
    it: a factor of d_j is one of m s_j, and c goes into the bias.
    """
    k, m, c = DENDRITE[activation]
    modules = list[Dense]()
    for i in range(dendrites):
        before, after = i * out, (i + 1) * out
        value = np.zeros((after + WIDTH, before + WIDTH), np.float32)
        gate, opened = np.zeros_like(value), np.full(after + WIDTH, OPEN, np.float32)
        value[:before, :before] = np.eye(before)
        value[after:, before:] = np.eye(WIDTH)
        constant = np.zeros(after + WIDTH, np.float32)
        constant[before:after] = 1
        drive, links = entries.get(f"dendrites.{i}.bias", np.zeros(out, np.float32)), entries.get(f"links.{i - 1}")
        gate[before:after, before:] = k * entries[f"dendrites.{i}.weight"]
        if links is not None:
            gate[before:after, :before] = k * m * np.concatenate([np.diag(link) for link in links], axis=1)
            drive = drive + c * links.sum(axis=0)
        opened[before:after] = k * drive
        modules.append(Dense(np.concatenate([value, gate]), np.concatenate([constant, opened]), GLU, reads))
    tops = [entries[f"tops.{i}"] for i in range(dendrites)]
    weight = np.concatenate([*(m * np.diag(top) for top in tops), entries["weight"]], axis=1)
    bias = entries.get("bias", np.zeros(out, np.float32)) + c * sum(tops, np.zeros(out, np.float32))
    return modules, weight.astype(np.float32), bias.astype(np.float32)


def _of(place: str, entries: dict[str, Vector]) -> dict[str, Vector]:
    return {name.removeprefix(f"{place}."): value for name, value in entries.items() if name.startswith(f"{place}.")}


def _mean_pooling() -> dict[str, Any]:
    modes = dict.fromkeys(("cls_token", "max_tokens", "mean_sqrt_len_tokens"), False)
    named = {f"pooling_mode_{mode}": on for mode, on in (modes | {"mean_tokens": True}).items()}
    return {"word_embedding_dimension": WIDTH} | named
