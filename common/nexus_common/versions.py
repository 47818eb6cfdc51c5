"""Adapters on disk: a version with the plan that it belongs to, or a site's own with its recipe.

safetensors with the plan's canonical JSON beside the vector, so a version explains itself: a server that was lost is
made again from any site's file.  Written so that a crash leaves the old file or the new one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nexus_common import wire
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Layout, Vector
from nexus_common.plan import Plan
from nexus_common.recipe import Recipe

PERTURBATION: Final = np.float32(2**-14)


@dataclass(frozen=True)
class StoredAdapter:
    """A vector of a layout, the recipe or plan that led to it, its number there; of own ones, which data made them."""

    recipe: Recipe
    number: int
    vector: Vector
    layout: Layout
    trained_on: str = ""

    @property
    def plan(self) -> Plan:
        """The consortium plan of a federated version; NexusError for a site's own adapter."""
        if not isinstance(self.recipe, Plan):
            raise NexusError("this adapter was trained by a site alone and belongs to no plan")
        return self.recipe

    @property
    def stage(self) -> int:
        """The number of its form among those of its plan; ValueError where the plan has none such."""
        return [one.arms for one in self.plan.stages].index((self.layout,))

    @property
    def digest(self) -> str:
        """``vector_hash`` of its numbers."""
        return vector_hash(wire.pack(self.vector))

    def write(self, path: Path) -> None:
        """Store durably."""
        kind = "plan" if isinstance(self.recipe, Plan) else "recipe"
        layout = json.dumps(asdict(self.layout))
        facts = {kind: self.recipe.model_dump_json(), "number": str(self.number), "layout": layout}
        facts["trained_on"] = self.trained_on
        write_durably(path, save({"vector": self.vector}, metadata=facts))

    @classmethod
    def read(cls, path: Path) -> "StoredAdapter | None":
        """What is stored, None where nothing is; NexusError where the file is damaged."""
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                facts, vector = file.metadata(), np.asarray(file.get_tensor("vector"), np.float32)
            of_plan = "plan" in facts
            recipe = (Plan if of_plan else Recipe).model_validate_json(facts["plan" if of_plan else "recipe"])
            layout = Layout(**json.loads(facts["layout"]))
            layout.split(vector)
            return cls(recipe, int(facts["number"]), vector, layout, facts["trained_on"])
        except (SafetensorError, KeyError, ValueError, TypeError, Refusal) as problem:
            raise NexusError(
                f"{path} is damaged ({type(problem).__name__}); delete it and restart the agent: what is missing is "
                "sent or made again"
            ) from None


def vector_hash(packed: bytes) -> str:
    """How a plan names the version that it begins at (hex): SHA-256 of the packed vector."""
    return hashlib.sha256(packed).hexdigest()


def trained_from(plan: Plan, number: int, vector: Vector) -> Vector:
    """The weights [dim] that sites train on in the round after version ``number``: the version's own.

    But round 0 begins beside its version, by the plan's own perturbation: a model is opened only once, under whatever
    plan, and many plans begin at the same version (specification, "Recovery").
    """
    return perturbed(plan, 0, vector) if number == 0 else vector


def perturbed(plan: Plan, attempt: int, vector: Vector) -> Vector:
    """The vector with 2^-14 added to or subtracted from each value, as the plan's hash and ``attempt`` say."""
    seed = b"nexus perturbation 1\n" + plan.hash + attempt.to_bytes(4, "little")
    bits = hashlib.shake_256(seed).digest((len(vector) + 7) // 8)
    up = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(vector)).astype(bool)
    return (vector + np.where(up, PERTURBATION, -PERTURBATION)).astype(np.float32)
