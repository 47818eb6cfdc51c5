"""The arms of the dendrites' benchmark: what is trained, and against which control it is held.

An arm begins as the base model, to the bit; the same seed gives the same first dendrite values, batches and dropout
masks to all arms, so that two arms are compared seed by seed.  Arms of the product are its own ``DendriticAdapter``; a
control replaces the projection's layer alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from nexus_client.engines import layer_of
from nexus_client.growing import Place
from nexus_client.site import Engine
from nexus_common.adapter import DendriticAdapter, Layer
from nexus_common.layout import WIDTH, Layout, first_dendrite_values
from torch import Tensor, nn

SAME_COUNT: Final = 385
"""Units of a two-layer linear projection with exactly as many parameters as one with a dendrite: 2 x 147,840 + 384."""
AWAKE: Final = 100


class TwoLayer(nn.Module):
    """y = W2 W1 x + b: linear, however many parameters.  W2 W1 = I at birth; units beyond 384 begin as dendrites do."""

    def __init__(self, units: int, seed: bytes) -> None:
        super().__init__()
        extra = torch.from_numpy(first_dendrite_values(seed, "units", (units - WIDTH) * WIDTH)).reshape(-1, WIDTH)
        self.inner = nn.Parameter(torch.cat([torch.eye(WIDTH), extra]))
        self.outer = nn.Parameter(torch.eye(WIDTH, units))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[..., 384] -> [..., 384]."""
        return nn.functional.linear(nn.functional.linear(x, self.inner), self.outer, self.bias)


class Small(nn.Module):
    """y = x + B s(A x): rank r, 768 r parameters; s is the identity, or tanh for r dendrites that share the output."""

    def __init__(self, rank: int, activation: Callable[[Tensor], Tensor], seed: bytes) -> None:
        super().__init__()
        first = first_dendrite_values(seed, "rank", rank * WIDTH).reshape(rank, WIDTH)
        self.inner, self.outer = nn.Parameter(5 * torch.from_numpy(first)), nn.Parameter(torch.zeros(WIDTH, rank))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., 384] -> [..., 384]."""
        return x + nn.functional.linear(self.activation(nn.functional.linear(x, self.inner)), self.outer)


Change = Callable[[DendriticAdapter, bytes], None]
"""What makes a control of the product's adapter, given its seed."""


def identity(x: Tensor) -> Tensor:
    """No activation at all."""
    return x


def keep(_: DendriticAdapter, __: bytes) -> None:
    """The product's own adapter."""


def without(adapter: DendriticAdapter, _: bytes) -> None:
    """No projection."""
    adapter.projection.layer = nn.Identity()


def twin(adapter: DendriticAdapter, _: bytes) -> None:
    """The same dendrites in the projection with the identity in place of their activation."""
    adapter.projection.layer.activation = identity


def salience_twin(adapter: DendriticAdapter, _: bytes) -> None:
    """The same in the salience head."""
    adapter.salience.layer.activation = identity


def awake(adapter: DendriticAdapter, _: bytes) -> None:
    """First dendrite weights of standard deviation 1, not 0.01: over x of length 1 their tanh bends from the start."""
    with torch.no_grad():
        for parameter in adapter.projection.layer.dendrites.parameters():
            parameter.mul_(AWAKE)


def awake_twin(adapter: DendriticAdapter, seed: bytes) -> None:
    """The linear control of ``awake``."""
    awake(adapter, seed)
    twin(adapter, seed)


def two_layer(adapter: DendriticAdapter, seed: bytes) -> None:
    """Two linear layers with one dendrite's number of parameters."""
    adapter.projection.layer = TwoLayer(SAME_COUNT, seed)


def small(rank: int, activation: Callable[[Tensor], Tensor]) -> Change:
    """A projection of low rank."""

    def change(adapter: DendriticAdapter, seed: bytes) -> None:
        adapter.projection.layer = Small(rank, activation, seed)

    return change


@dataclass(frozen=True)
class Arm:
    """One way to train.  ``against``: the arms that it is compared with; ``grows``: where dendrites are tried in a run;
    ``candidate``: among those of which the dev split chooses one.
    """

    name: str
    why: str
    layout: Layout = field(default_factory=Layout)
    change: Change = keep
    against: tuple[str, ...] = ()
    grows: Place | None = None
    engine: Engine = "native"
    candidate: bool = False

    def adapter(self, seed: int) -> DendriticAdapter:
        """The arm at birth."""
        first, layer = seed.to_bytes(8, "little"), layer_of(self.engine)
        made = DendriticAdapter(self.layout, layer)
        made.load_vector(self.layout.first_vector(first))
        self.change(made, first)
        return made

    @property
    def parameters(self) -> int:
        """Live parameters of the arm at birth."""
        return live(self.adapter(0))


def live(adapter: DendriticAdapter) -> int:
    """Parameters that training changes; the package keeps others beside them, so its layers are asked by name."""
    layers = [adapter.projection.layer, *([] if adapter.salience is None else [adapter.salience.layer])]
    each = [layer.entries() if isinstance(layer, Layer) else dict(layer.named_parameters()) for layer in layers]
    return sum(value.numel() for named in each for value in named.values())


RANKS: Final = (4, 8, 16, 32)
_BOTH: Final = "salience + linear"

ARMS: Final = {
    arm.name: arm
    for arm in (
        Arm("linear", "the adapter without dendrites: what every gain is counted from", candidate=True),
        Arm("two-layer linear", "as many parameters as one dendrite makes, none of them non-linear", change=two_layer,
            against=("linear",)),
        Arm("linear twin", "the dendrite's parameters, birth and gradients, with the identity in place of tanh",
            Layout(1), twin, against=("linear",)),
        Arm("1 dendrite", "one projection dendrite from the start (native)", Layout(1),
            against=("linear", "two-layer linear", "linear twin"), candidate=True),
        Arm("1 dendrite, awake", "first weights a hundred times as large: at 0.01 a dendrite hardly bends",
            Layout(1), awake, against=("linear", "linear twin, awake"), candidate=True),
        Arm("linear twin, awake", "its linear control, parameter for parameter", Layout(1), awake_twin,
            against=("linear",)),
        Arm("1 dendrite, perforatedai", "the same, computed by Perforated AI's package", Layout(1),
            against=("1 dendrite",), engine="perforatedai"),
        Arm("1 dendrite, sigmoid", "the package's own activation", Layout(1, activation="sigmoid"), against=("linear",),
            candidate=True),
        Arm("2 dendrites", "a second one, which sees the first", Layout(2), against=("linear",), candidate=True),
        Arm("grown dendrites", "linear until dev stops to improve, then a dendrite if it beats its control on dev",
            against=("linear",), grows="projection"),
        Arm("salience", "which tokens count, 384 parameters, no projection", Layout(0, 0), without),
        Arm(_BOTH, "the shipped adapter", Layout(0, 0), against=("linear",), candidate=True),
        Arm("salience + 1 dendrite", "the shipped adapter with a projection dendrite", Layout(1, 0),
            against=(_BOTH, "salience + linear twin"), candidate=True),
        Arm("salience + linear twin", "its linear control, parameter for parameter", Layout(1, 0), twin,
            against=(_BOTH,)),
        Arm("salience dendrite + linear", "a dendrite inside the salience head, where linear cannot follow",
            Layout(0, 1), against=(_BOTH, "salience twin + linear"), candidate=True),
        Arm("salience twin + linear", "its linear control, parameter for parameter", Layout(0, 1), salience_twin,
            against=(_BOTH,)),
        Arm("2 salience dendrites + linear", "two of them", Layout(0, 2), against=(_BOTH,), candidate=True),
        Arm("grown salience dendrites", "the shipped adapter, then a salience dendrite if it beats its control on dev",
            Layout(0, 0), against=(_BOTH,), grows="salience"),
        *(Arm(f"rank {rank}", "a small linear adapter", change=small(rank, identity), against=("linear",))
          for rank in RANKS),
        *(Arm(f"rank {rank}, tanh", "as small, of dendrites: not one parameter more", change=small(rank, torch.tanh),
              against=(f"rank {rank}",)) for rank in RANKS),
    )
}  # fmt: skip
