"""The adapter as stock modules: Dense with a gated linear unit says exactly what ``adapter.py`` computes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from nexus_client.stock_modules import GLU, Dense, projection_modules, salience_modules, write_folder
from nexus_common.adapter import DendriticAdapter, unpadded
from nexus_common.layout import WIDTH, Layout
from safetensors.numpy import load_file
from torch import nn

from tests.unit.vectors import lively

OLD_KEYS = {"in_features", "out_features", "bias", "activation_function"}  # of sentence-transformers 3.4
COUNTS = (0, 1, 2, 3)


def through(modules: Sequence[Dense], x: torch.Tensor) -> torch.Tensor:
    """As sentence-transformers computes them."""
    for module in modules:
        x = nn.functional.linear(x, torch.from_numpy(module.weight), torch.from_numpy(module.bias))
        x = nn.functional.glu(x) if module.activation == GLU else x
    return x


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("dendrites", COUNTS)
def test_a_projection(dendrites: int, activation: str) -> None:
    layout = Layout(dendrites, None, activation)  # type: ignore[arg-type]
    vector = lively(layout, dendrites)
    x = nn.functional.normalize(torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    modules = projection_modules(layout.split(vector), layout)
    assert [len(module.bias) for module in modules] == [2 * WIDTH * (i + 2) for i in range(dendrites)] + [WIDTH]
    with torch.inference_mode():
        right = DendriticAdapter(layout).load_vector(vector)(x)
    apart = nn.functional.normalize(through(modules, x), dim=-1) - right
    assert apart.abs().max() < 1e-6


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("dendrites", COUNTS)
def test_a_salience_head(dendrites: int, activation: str) -> None:
    layout = Layout(0, dendrites, activation)  # type: ignore[arg-type]
    vector = lively(layout, dendrites)
    states = torch.randn(4, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[1], [5], [9], [0]])
    modules = salience_modules(layout.split(vector), layout)
    with torch.inference_mode():
        head = DendriticAdapter(layout).load_vector(vector).salience
        assert head is not None
        right = head.pool(*unpadded(states, mask))
    gated = through(modules, states) * mask[:, :, None]
    mean = gated.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1e-9)  # mean pooling
    assert (nn.functional.normalize(mean, dim=-1) - right).abs().max() < 1e-6
    assert not right[3].any()


def base_model(folder: Path) -> Path:
    """A base model's files, without content."""
    (folder / "1_Pooling").mkdir(parents=True)
    types = {"0": ("", "Transformer"), "1": ("1_Pooling", "Pooling"), "2": ("2_Normalize", "Normalize")}
    named = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, (path, kind) in types.items()
    ]
    (folder / "modules.json").write_text(json.dumps(named))
    (folder / "1_Pooling" / "config.json").write_text("{}")
    for name in ("model.safetensors", "tokenizer.json", "vocab.txt", "README.md", "pytorch_model.bin"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("dendrites", COUNTS)
def test_without_salience_old_versions_know_every_name_and_key(tmp_path: Path, dendrites: int) -> None:
    """Such a folder was loaded in 3.4.1 and 5.1.2; these are not installed where the tests run."""
    base, out, layout = base_model(tmp_path / "base"), tmp_path / "out", Layout(dendrites)
    out.mkdir()
    write_folder(base, out, (layout, lively(layout)))
    modules = json.loads((out / "modules.json").read_text())
    kinds = ["Transformer", "Pooling", "Normalize", *["Dense"] * (dendrites + 1), "Normalize"]
    assert [module["type"] for module in modules] == [f"sentence_transformers.models.{kind}" for kind in kinds]
    assert [module["idx"] for module in modules] == list(range(len(modules)))
    for module in modules[3:-1]:
        config = json.loads((out / module["path"] / "config.json").read_text())
        assert set(config) == OLD_KEYS
        assert config["activation_function"].startswith("torch.nn.modules.")
        weights = load_file(out / module["path"] / "model.safetensors")
        shapes = {
            "linear.weight": (config["out_features"], config["in_features"]),
            "linear.bias": (config["out_features"],),
        }
        assert {name: value.shape for name, value in weights.items()} == shapes
    there = {path.name for path in out.iterdir() if path.is_file()}
    assert there == {"modules.json", "model.safetensors", "tokenizer.json", "vocab.txt"}


def test_salience_stands_before_a_mean_pooling_of_its_own(tmp_path: Path) -> None:
    base, out, layout = base_model(tmp_path / "base"), tmp_path / "out", Layout(0, 0)
    out.mkdir()
    write_folder(base, out, (layout, lively(layout)))
    modules = json.loads((out / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Dense", "Pooling", "Normalize", "Dense", "Normalize"]
    config = json.loads((out / modules[1]["path"] / "config.json").read_text())
    assert set(config) == OLD_KEYS | {"module_input_name"}
    pooling = json.loads((out / modules[2]["path"] / "config.json").read_text())
    assert [mode for mode, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens"]


def test_the_base_model_alone_is_its_own_files(tmp_path: Path) -> None:
    base, out = base_model(tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    write_folder(base, out, None)
    assert json.loads((out / "modules.json").read_text()) == json.loads((base / "modules.json").read_text())


def test_vectors_of_these_tests_have_every_part_at_work() -> None:
    layout = Layout(2, 2)
    for name, value in layout.split(lively(layout)).items():
        assert np.abs(value).max() > 0.01, name
