"""The dendritic adapter against its formula, written out; and every layout trains, saves, travels and loads."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nexus_client.embed import default_base
from nexus_common import wire
from nexus_common.adapter import DendriticAdapter, DendriticProjection, SaliencePooling, unpadded
from nexus_common.layout import WIDTH, Layout

LAYOUTS = [Layout(d, s) for d in (0, 1, 2) for s in (None, 0, 1, 2)]
name = str


def states_and_mask(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1], [5]])).float()
    return torch.randn(4, 7, WIDTH, generator=generator), mask


def mean_pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


def inputs(layout: Layout) -> tuple[torch.Tensor, ...]:
    states, mask = states_and_mask()
    return (mean_pooled(states, mask),) if layout.salience is None else unpadded(states, mask)


def random_vector(layout: Layout) -> np.ndarray:
    return layout.first_vector(b"x") + np.random.default_rng(1).normal(size=layout.dim).astype("f4") * np.float32(0.05)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_at_birth_the_output_is_the_base_models(layout: Layout) -> None:
    adapter = DendriticAdapter(layout).load_vector(layout.first_vector(b"seed"))
    torch.testing.assert_close(adapter(*inputs(layout)), mean_pooled(*states_and_mask()), atol=1e-6, rtol=0)


def layer(p: dict[str, np.ndarray], place: str, x: np.ndarray, dendrites: int, activation) -> np.ndarray:
    """The design's formula, one line each."""
    activity: list[np.ndarray] = []
    y = x @ p[f"{place}.weight"].T + p.get(f"{place}.bias", 0)
    for i in range(dendrites):
        drive = x @ p[f"{place}.dendrites.{i}.weight"].T + p.get(f"{place}.dendrites.{i}.bias", 0)
        for j in range(i):
            drive = drive + p[f"{place}.links.{i - 1}"][j] * activity[j]
        activity.append(activation(drive))
        y = y + p[f"{place}.tops.{i}"] * activity[i]
    return y


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_the_modules_compute_the_formula(layout: Layout, activation: str) -> None:
    layout = Layout(layout.projection, layout.salience, activation)
    vector = random_vector(layout)
    p = {key: value.astype("f8") for key, value in layout.split(vector).items()}
    act = np.tanh if activation == "tanh" else lambda z: 1 / (1 + np.exp(-z))
    states, mask = (part.numpy().astype("f8") for part in states_and_mask())
    if layout.salience is None:
        x = mean_pooled(*states_and_mask()).numpy().astype("f8")
    else:
        gate = 1 / (1 + np.exp(-layer(p, "salience", states, layout.salience, act)[..., 0])) * mask
        x = (gate[..., None] * states).sum(1)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = layer(p, "projection", x, layout.projection, act)
    expected = y / np.linalg.norm(y, axis=1, keepdims=True)
    found = DendriticAdapter(layout).load_vector(vector)(*inputs(layout)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_every_parameter_learns(layout: Layout) -> None:
    first = layout.first_vector(b"seed")
    adapter = DendriticAdapter(layout).load_vector(first)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-3)
    target = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2)), dim=-1)
    losses = []
    for _ in range(5):
        loss = -(adapter(*inputs(layout)) * target).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = layout.split(adapter.vector())
    still = [key for key, value in layout.split(first).items() if np.array_equal(value, after[key])]
    assert not still, "from the third step on even dendrites behind a top weight of 0 move"


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_a_vector_travels_and_loads_unchanged(layout: Layout) -> None:
    vector = random_vector(layout)
    arrived = wire.unpack(wire.pack(vector), layout)
    np.testing.assert_array_equal(DendriticAdapter(layout).load_vector(arrived).vector(), vector)


@pytest.mark.parametrize("dendrites", [0, 1, 2])
def test_modules_are_saved_and_loaded_in_the_manner_of_sentence_transformers(tmp_path: Path, dendrites: int) -> None:
    layout = Layout(dendrites, dendrites)
    adapter = DendriticAdapter(layout).load_vector(random_vector(layout))
    assert adapter.salience is not None
    adapter.salience.save(str(tmp_path / "1"))
    adapter.projection.save(str(tmp_path / "2"))
    salience, projection = (
        SaliencePooling.load(str(tmp_path / "1")),
        DendriticProjection.load(str(tmp_path), subfolder="2"),
    )
    torch.testing.assert_close(
        projection.project(salience.pool(*unpadded(*states_and_mask()))), adapter(*inputs(layout))
    )


def test_the_modules_work_inside_a_real_sentence_transformer() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    base = SentenceTransformer(str(default_base()), device="cpu")
    adapted = SentenceTransformer(modules=[base[0], SaliencePooling(), DendriticProjection()], device="cpu")
    texts = ["DOAC held 24 h pre-op", "when do I stop my blood thinner", "x"]
    np.testing.assert_allclose(adapted.encode(texts), base.encode(texts), atol=1e-6)
