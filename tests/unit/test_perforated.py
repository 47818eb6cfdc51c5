"""Both engines are one arithmetic, bit for bit in float32; and the package shows itself nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nexus_client.train import local_update
from nexus_common.adapter import DendriticAdapter, unpadded
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, Activation, Layout, Vector
from nexus_common.recipe import LocalSettings

from tests.unit.test_train import RandomStates, pairs

pytest.importorskip("perforatedai", reason="needs perforatedai (x86_64 Linux; `make test` installs it there)")
from nexus_client.perforated import PerforatedLayer, kept_to_itself

DENDRITES, ACTIVATIONS = range(4), ("tanh", "sigmoid")


def vector_of(layout: Layout) -> Vector:
    noise = np.random.default_rng(3).normal(size=layout.dim, scale=0.1).astype(np.float32)
    return layout.first_vector(b"seed") + noise


def both(layout: Layout) -> tuple[DendriticAdapter, DendriticAdapter]:
    """Native, and the package's, from one vector."""
    vector = vector_of(layout)
    made = DendriticAdapter(layout).load_vector(vector), DendriticAdapter(layout, PerforatedLayer).load_vector(vector)
    np.testing.assert_array_equal(made[1].vector(), vector)
    return made


def token_states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, their mask, and what the loss wants."""
    generator = torch.Generator().manual_seed(1)
    states, wanted = torch.randn(6, 9, WIDTH, generator=generator), torch.randn(6, WIDTH, generator=generator)
    return states, (torch.arange(9) < torch.tensor([9, 4, 1, 7, 2, 9])[:, None]).float(), wanted


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dendrites", DENDRITES)
def test_outputs_gradients_and_ten_steps_are_the_same_bits(dendrites: int, activation: Activation) -> None:
    adapters = both(layout := Layout(dendrites, dendrites, activation))
    states, mask, wanted = token_states()
    optimisers = [torch.optim.Adam(adapter.parameters(), lr=1e-2) for adapter in adapters]
    for step in range(10):
        outputs = [adapter(*unpadded(states, mask)) for adapter in adapters]
        assert torch.equal(*outputs), f"step {step}"
        for output, optimiser in zip(outputs, optimisers, strict=True):
            optimiser.zero_grad()
            (output * wanted).sum().backward()
            optimiser.step()
    found = [adapter.vector() for adapter in adapters]
    np.testing.assert_array_equal(*found)
    moved = layout.split(found[0] - vector_of(layout))
    still = [name for name, change in moved.items() if not change.any()]
    assert not still, "every live parameter trains"


@pytest.mark.parametrize("dendrites", DENDRITES)
@pytest.mark.parametrize(("out", "bias"), [(WIDTH, True), (1, False)], ids=["projection", "salience"])
def test_gradients_of_every_parameter_and_of_the_input_are_the_same_bits(dendrites: int, out: int, bias: bool) -> None:
    place = "projection" if bias else "salience"
    adapters = both(Layout(dendrites, dendrites))
    layers = [a.projection.layer if bias else a.salience.layer for a in adapters]  # type: ignore[union-attr]
    inputs = [torch.randn(33, WIDTH, generator=torch.Generator().manual_seed(5)).requires_grad_() for _ in layers]
    for layer, given in zip(layers, inputs, strict=True):
        layer(given).square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]
    theirs = dict(layers[1].wrapped.named_parameters())
    native = dict(layers[0].named_parameters())
    for i in range(dendrites):
        assert torch.equal(native[f"tops.{i}"].grad, theirs[f"dendrites_to_top.{dendrites - 1}"].grad[i])  # type: ignore[arg-type,index]
        for name in ("weight", "bias")[: 1 + bias]:
            grad = theirs[f"dendrite_module.layers.{i}.{name}"].grad
            assert torch.equal(native[f"dendrites.{i}.{name}"].grad, grad), (place, i, name)  # type: ignore[arg-type]
    for i in range(1, dendrites):
        grad = theirs[f"dendrite_module.dendrites_to_dendrites.{i}"].grad
        assert torch.equal(native[f"links.{i - 1}"].grad, grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [Layout(), Layout(1), Layout(2, 1)], ids=str)
def test_a_rounds_update_is_the_same_bits(layout: Layout) -> None:
    texts, task = pairs()
    states = RandomStates(len(texts.items))
    updates = [
        local_update(
            layout, vector_of(layout), [task], states, LocalSettings(steps=5), np.random.default_rng(2), **engine
        )
        for engine in ({}, {"layer": PerforatedLayer})
    ]
    assert updates[0].any()
    np.testing.assert_array_equal(*updates)


def test_the_package_gives_birth_to_dendrites_as_the_design_says() -> None:
    """0.01 x torch's standard normal, weight before bias, and no influence on the output yet."""
    torch.manual_seed(11)
    layer = PerforatedLayer(5, 1, "tanh", bias=True)
    torch.manual_seed(11)
    torch.nn.Linear(WIDTH, 5)
    entries = layer.entries()
    np.testing.assert_array_equal(entries["dendrites.0.weight"].detach(), 0.01 * torch.randn(5, WIDTH))
    np.testing.assert_array_equal(entries["dendrites.0.bias"].detach(), 0.01 * torch.randn(5))
    assert not entries["tops.0"].any()


def test_it_prints_nothing_writes_nothing_and_leaves_torchs_random_numbers_alone(tmp_path: Path) -> None:
    script = """
import torch
torch.manual_seed(4)
from nexus_client.perforated import PerforatedLayer
before = torch.random.get_rng_state()
layer = PerforatedLayer(384, 3, "tanh", bias=True)
layer(torch.zeros(2, 384)).sum().backward()
assert torch.equal(before, torch.random.get_rng_state())
"""
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not done.stderr, done.stderr
    assert [path.name for path in tmp_path.rglob("*") if "cache" not in str(path)] == ["home"]


@pytest.mark.parametrize("surprise", ["import sys; sys.exit()", "import pdb; pdb.set_trace()"])
def test_its_debugger_and_its_exits_become_errors_in_words(surprise: str) -> None:
    with pytest.raises(NexusError, match="perforatedai gave up: it says why"), kept_to_itself():
        print("it says why")
        exec(surprise, {})  # noqa: S102
