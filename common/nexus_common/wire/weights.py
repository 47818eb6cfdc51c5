"""A model's parameters as bytes, and its name."""

import hashlib

import numpy as np

from nexus_common.errors import Refusal
from nexus_common.layout import Vector
from nexus_common.stages import Stage


def pack(vector: Vector) -> bytes:
    """float32, little-endian."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def unpack(data: bytes, stage: Stage) -> Vector:
    """The inverse of ``pack``: exact length and finite values, or Refusal ``bad-update``."""
    if len(data) != 4 * stage.dim:
        raise Refusal("bad-update", f"{len(data)} bytes, this stage has {stage.dim} parameters of 4 bytes")
    vector = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise Refusal("bad-update", f"{int((~np.isfinite(vector)).sum())} of {stage.dim} values are not finite")
    return vector


def model_hash(stage: Stage, vector: bytes, *, close: bool = False) -> bytes:
    """Name a model by its content alone: under another number, run or plan the same weights are the same model.

    In a closing round it has another name: sites of which some train and others do not must form no sum.
    """
    label = b"nexus closing model 1\n" if close else b"nexus model 1\n"
    return hashlib.sha256(label + stage.hash + vector).digest()
