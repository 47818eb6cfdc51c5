"""Adapters on a site's disk: the newest federated version and the site's own, each with the run it belongs to.

safetensors with the plan's canonical JSON beside the vector, so a version explains itself; written so that a crash
leaves the old file or the new one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


@dataclass(frozen=True)
class StoredAdapter:
    """A vector, the plan whose layout it has, its number in the run, and what data it was trained on (own ones)."""

    plan: Plan
    number: int
    vector: Vector
    trained_on: str = ""

    def write(self, path: Path) -> None:
        """Store durably."""
        facts = {"plan": self.plan.canonical.decode(), "number": str(self.number), "trained_on": self.trained_on}
        write_durably(path, save({"vector": self.vector}, metadata=facts))

    @classmethod
    def read(cls, path: Path) -> "StoredAdapter | None":
        """What is stored, None where nothing is; NexusError where the file is damaged."""
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                facts, vector = file.metadata(), np.asarray(file.get_tensor("vector"), np.float32)
            plan = Plan.model_validate_json(facts["plan"])
            plan.adapter.layout.split(vector)
            return cls(plan, int(facts["number"]), vector, facts["trained_on"])
        except (SafetensorError, KeyError, ValueError, TypeError, Refusal) as problem:
            raise NexusError(
                f"{path} is damaged ({type(problem).__name__}); delete it and restart the agent: what is missing is "
                "sent or made again"
            ) from None


def federated_file(state: Path) -> Path:
    """Where the newest version that the server sent lies."""
    return state / "federated.safetensors"
