"""The dendritic adapter in plain PyTorch (engine ``native``): the only module that imports torch at its top.

    d_i = s(W_i x + b_i + sum_{j<i} c_ij * d_j)        y = W x + b + sum_i t_i * d_i

Open-mode (gradient-descent) dendrites, the arithmetic of an ``nn.Linear`` wrapped by Perforated AI's
``PAINeuronModule``.  Two places: ``salience`` (384 -> 1 over token states, before pooling, Sigmoid gate) and
``projection`` (384 -> 384, after pooling).  ``SaliencePooling`` and ``DendriticProjection`` are also
sentence-transformers modules: each maps a feature dictionary to itself.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nexus_common.layout import WIDTH, Activation, Layout, Vector

ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


class Layer(nn.Module, ABC):
    """A linear layer 384 -> out with D >= 0 dendrites; [..., 384] -> [..., out].  One class an engine."""

    @abstractmethod
    def entries(self) -> dict[str, Tensor]:
        """The live parameters, or views of them, under the names of ``layout.py``."""


class LayerMaker(Protocol):
    """What makes an engine's layers."""

    def __call__(self, out: int, dendrites: int, activation: Activation, *, bias: bool) -> Layer:
        """A layer whose parameters are set afterwards."""


class DendriticLayer(Layer):
    """The native engine."""

    def __init__(self, out: int, dendrites: int, activation: Activation, *, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.weight = nn.Parameter(torch.zeros(out, WIDTH))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.dendrites = nn.ModuleList(nn.Linear(WIDTH, out, bias=bias) for _ in range(dendrites))
        self.tops = nn.ParameterList(torch.zeros(out) for _ in range(dendrites))
        self.links = nn.ParameterList(torch.zeros(i, out) for i in range(1, dendrites))

    def forward(self, x: Tensor) -> Tensor:
        """Compute y = W x + b + sum_i t_i * d_i.

        One step after the other in the order of the package, so that gradients are the same sums to the last bit.
        """
        y = nn.functional.linear(x, self.weight, self.bias)
        drives = [dendrite(x) for dendrite in self.dendrites]
        activity: list[Tensor] = []
        for i, drive in enumerate(drives):
            total = drive
            for j, earlier in enumerate(activity):
                total = total + self.links[i - 1][j] * earlier
            activity.append(self.activation(total))
        for top, active in zip(self.tops, activity, strict=True):
            y = y + top * active
        return y

    def entries(self) -> dict[str, Tensor]:
        """The live parameters."""
        return dict(self.named_parameters())

    def grow(self, weight: Tensor, bias: Tensor | None) -> list[nn.Parameter]:
        """Add a dendrite with these first weights, [out, 384] and [out]; the output stays what it was.

        The new parameters are returned, for the optimiser.
        """
        born = nn.Linear(WIDTH, self.weight.shape[0], bias=bias is not None).to(self.weight)
        with torch.no_grad():
            born.weight.copy_(weight)
            if bias is not None:
                born.bias.copy_(bias)
        if len(self.dendrites):
            self.links.append(nn.Parameter(self.weight.new_zeros(len(self.dendrites), len(self.weight))))
        self.tops.append(nn.Parameter(self.weight.new_zeros(len(self.weight))))
        self.dendrites.append(born)
        return [*born.parameters(), self.tops[-1], *list(self.links)[-1:]]

    def shrink(self) -> None:
        """Take the youngest dendrite away."""
        self.dendrites, self.tops, self.links = self.dendrites[:-1], self.tops[:-1], self.links[:-1]


class StoredModule(nn.Module):
    """What sentence-transformers asks of a module: to be saved, to be loaded, and to say its width.

    Its layer's dendrites and ``activation`` are its whole configuration.
    """

    def __init__(self, activation: Activation, layer: Layer) -> None:
        super().__init__()
        self.activation, self.layer = activation, layer

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write configuration and weights in the manner of sentence-transformers."""
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        entries = {name: value.detach().contiguous() for name, value in self.layer.entries().items()}
        dendrites = sum(name.startswith("tops.") for name in entries)
        (folder / "config.json").write_text(json.dumps({"dendrites": dendrites, "activation": self.activation}))
        save_file(entries, folder / "model.safetensors")

    @classmethod
    def load(cls, input_path: str, subfolder: str = "", **_: Any) -> Self:
        """Read what ``save`` wrote."""
        folder = Path(input_path) / subfolder
        module = cls(**json.loads((folder / "config.json").read_text()))
        found, wanted = load_file(folder / "model.safetensors"), module.layer.entries()
        if {name: value.shape for name, value in found.items()} != {
            name: value.shape for name, value in wanted.items()
        }:
            raise ValueError(f"{folder} holds {sorted(found)}, its configuration says {sorted(wanted)}")
        with torch.no_grad():
            for name, value in found.items():
                wanted[name].copy_(value)
        return module

    def get_sentence_embedding_dimension(self) -> int:
        """Width of what comes out."""
        return WIDTH


def unpadded(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States [n, longest, 384] with mask [n, longest], as what is not padding [tokens, 384] and lengths [n]."""
    return states[mask.bool()], mask.sum(dim=1).long()


class SaliencePooling(StoredModule):
    """Pool token states by g_t = sigmoid(v . h_t + dendrites) instead of by their mean; at birth it is the mean."""

    def __init__(self, dendrites: int = 0, activation: Activation = "tanh", layer: LayerMaker = DendriticLayer) -> None:
        super().__init__(activation, layer(1, dendrites, activation, bias=False))

    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """x = sum_t g_t h_t / |...|: states of all texts' tokens end to end [tokens, 384], lengths [n] -> [n, 384].

        Without padding: in a batch of questions and passages that would be half of all.
        """
        gate = torch.sigmoid(self.layer(tokens)).squeeze(-1)  # [tokens]
        order, starts = torch.arange(len(tokens), device=tokens.device), lengths.cumsum(0) - lengths
        x = nn.functional.embedding_bag(order, tokens, starts, mode="sum", per_sample_weights=gate)
        return nn.functional.normalize(x, dim=-1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """As a sentence-transformers module: token_embeddings, attention_mask -> sentence_embedding."""
        tokens, lengths = unpadded(features["token_embeddings"], features["attention_mask"])
        features["sentence_embedding"] = self.pool(tokens, lengths)
        return features


class DendriticProjection(StoredModule):
    """The projection after pooling: out = y / |y|."""

    def __init__(self, dendrites: int = 0, activation: Activation = "tanh", layer: LayerMaker = DendriticLayer) -> None:
        super().__init__(activation, layer(WIDTH, dendrites, activation, bias=True))
        with torch.no_grad():
            self.layer.entries()["weight"].copy_(torch.eye(WIDTH))

    def project(self, x: Tensor) -> Tensor:
        """[batch, 384] -> [batch, 384] of length 1."""
        return nn.functional.normalize(self.layer(x), dim=-1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """As a sentence-transformers module: sentence_embedding -> sentence_embedding."""
        features["sentence_embedding"] = self.project(features["sentence_embedding"])
        return features


class DendriticAdapter(nn.Module):
    """Salience (where the layout has it) and projection, loaded from and read out as one flat vector.

    ``layer`` is the engine: the vector, its layout and what is computed from it are the same under each.
    """

    def __init__(self, layout: Layout, layer: LayerMaker = DendriticLayer) -> None:
        super().__init__()
        self.layout = layout
        self.salience = None if layout.salience is None else SaliencePooling(layout.salience, layout.activation, layer)
        self.projection = DendriticProjection(layout.projection, layout.activation, layer)

    def forward(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed texts: token states end to end [tokens, 384] with texts' lengths [n], or pooled vectors [n, 384]."""
        if self.salience is None:
            return self.projection.project(states)
        if lengths is None:
            raise ValueError("a layout with salience pools token states and needs the texts' lengths")
        return self.projection.project(self.salience.pool(states, lengths))

    def named_entries(self) -> dict[str, Tensor]:
        """The live parameters under the names of the layout."""
        named = {f"projection.{name}": p for name, p in self.projection.layer.entries().items()}
        if self.salience is not None:
            named |= {f"salience.{name}": p for name, p in self.salience.layer.entries().items()}
        return named

    @torch.no_grad()
    def load_vector(self, vector: Vector) -> Self:
        """Set all parameters from a flat vector; refuses one of another length."""
        named = self.named_entries()
        for name, value in self.layout.split(vector).items():
            named[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return self

    @torch.no_grad()
    def vector(self) -> Vector:
        """All parameters as one flat float32 vector in the layout's order."""
        return self.layout.join({name: p.detach().cpu().numpy() for name, p in self.named_entries().items()})
