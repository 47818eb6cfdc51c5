"""The messages between server and site: few, fixed, typed, and bounded.  Unknown ones are refused.

A message is a kind, named fields and at most one vector of float32 values; ``flower.py`` carries it.  Decoding checks
kind, field names, types and lengths before anything looks at a value.  Nothing here is executed, unpickled or used as
a path.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nexus_common.errors import REFUSALS, Refusal
from nexus_common.layout import Layout, Vector

Field = int | str | bytes
MAX_FIELD_BYTES: Final = 1 << 20
HASH: Final = 32
SIGNATURE: Final = 64


@dataclass(frozen=True)
class Parcel:
    """A message on its way: what Flower carries."""

    kind: str
    fields: dict[str, Field]
    vector: bytes | None = None


@dataclass(frozen=True)
class Propose:
    """To a site: here is a plan (canonical JSON) for its people to approve or not."""

    plan: bytes


@dataclass(frozen=True)
class Standing:
    """From a site: where its people stand on a plan, signed; ``code`` is what its policy objects to now, or empty."""

    state: str
    code: str
    signature: bytes


@dataclass(frozen=True)
class Prepare:
    """To a site: the run of this approved plan (canonical JSON) is on; embed your text for it."""

    plan: bytes


@dataclass(frozen=True)
class Readiness:
    """From a site: ``preparing`` or ``ready``, and nothing about how much."""

    state: str


@dataclass(frozen=True)
class TrainRound:
    """To a site: train on this version and send the change; ``use`` is 1 where it is also the version in use."""

    run: bytes
    round: int
    use: int
    vector: bytes


@dataclass(frozen=True)
class Update:
    """From a site: the change, signed by its identity over run, round, site, model and bytes."""

    model: bytes
    signature: bytes
    vector: bytes


@dataclass(frozen=True)
class Deliver:
    """To a site: the newest version, for its own use; nothing is asked."""

    run: bytes
    round: int
    vector: bytes


@dataclass(frozen=True)
class Received:
    """From a site: the delivered version is stored."""

    model: bytes


@dataclass(frozen=True)
class Refused:
    """From a site: no, with a code of ``errors.REFUSALS`` and nothing else."""

    code: str


Message = Propose | Standing | Prepare | Readiness | TrainRound | Update | Deliver | Received | Refused

KINDS: Final[dict[str, type[Any]]] = {
    "propose": Propose,
    "standing": Standing,
    "prepare": Prepare,
    "readiness": Readiness,
    "train": TrainRound,
    "update": Update,
    "deliver": Deliver,
    "received": Received,
    "refused": Refused,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_LENGTHS: Final = {"run": HASH, "model": HASH, "signature": SIGNATURE}
READY: Final[Literal["ready"]] = "ready"
PREPARING: Final[Literal["preparing"]] = "preparing"
PENDING: Final = "pending"
APPROVED: Final = "approved"
WITHDRAWN: Final = "withdrawn"
_STATES: Final[dict[type, tuple[str, ...]]] = {
    Readiness: (READY, PREPARING),
    Standing: (PENDING, APPROVED, WITHDRAWN),
}


def encode(message: Message) -> Parcel:
    """Typed message to parcel."""
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    vector = values.pop("vector", None)
    return Parcel(_NAMES[type(message)], values, vector)


def decode(parcel: Parcel) -> Message:
    """Parcel to typed message; Refusal ``unknown-message`` or ``malformed``."""
    kind = KINDS.get(parcel.kind)
    if kind is None:
        raise Refusal("unknown-message", f"message type {parcel.kind[:40]!r}")
    declared = {field.name: field.type for field in fields(kind)}
    values: dict[str, Field] = dict(parcel.fields)
    if parcel.vector is not None:
        values["vector"] = parcel.vector
    if values.keys() != declared.keys():
        raise Refusal("malformed", f"{parcel.kind}: fields {sorted(values)[:10]}, expected {sorted(declared)}")
    for name, value in values.items():
        _check(name, value, declared[name])
    if kind in _STATES and values["state"] not in _STATES[kind]:
        raise Refusal("malformed", f"{parcel.kind}: state is none of {', '.join(_STATES[kind])}")
    if "code" in values and values["code"] not in REFUSALS and not (kind is Standing and values["code"] == ""):
        raise Refusal("malformed", "a refusal code that does not exist")
    return kind(**values)  # type: ignore[no-any-return]


def _check(name: str, value: Field, declared: object) -> None:
    if type(value) is not declared:
        raise Refusal("malformed", f"{name} is {type(value).__name__}, expected {declared}")
    if isinstance(value, int):
        if not 0 <= value < 2**31:
            raise Refusal("malformed", f"{name} = {value} is out of range")
    elif len(value) > MAX_FIELD_BYTES and name != "vector":
        raise Refusal("malformed", f"{name} has {len(value)} bytes, at most {MAX_FIELD_BYTES}")
    if name in _LENGTHS and isinstance(value, bytes) and len(value) != _LENGTHS[name]:
        raise Refusal("malformed", f"{name} has {len(value)} bytes, expected {_LENGTHS[name]}")


def pack(vector: Vector) -> bytes:
    """float32, little-endian."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def unpack(data: bytes, layout: Layout) -> Vector:
    """The inverse of ``pack``: exact length and finite values, or Refusal ``bad-update``."""
    if len(data) != 4 * layout.dim:
        raise Refusal("bad-update", f"{len(data)} bytes, the layout has {layout.dim} parameters of 4 bytes")
    vector = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise Refusal("bad-update", f"{int((~np.isfinite(vector)).sum())} of {layout.dim} values are not finite")
    return vector


def model_hash(run: bytes, layout: Layout, number: int, vector: bytes) -> bytes:
    """Name a version by its content and its place in the run."""
    head = b"nexus version 1\n" + run + layout.hash + number.to_bytes(4, "little")
    return hashlib.sha256(head + vector).digest()


def _signed_bytes(run: bytes, number: int, site: str, model: bytes, vector: bytes) -> bytes:
    name = site.encode()
    return (
        b"nexus update 1\n"
        + run
        + number.to_bytes(4, "little")
        + len(name).to_bytes(1, "little")
        + name
        + model
        + hashlib.sha256(vector).digest()
    )


def signed_update(key: Ed25519PrivateKey, run: bytes, number: int, site: str, model: bytes, vector: bytes) -> Update:
    """An update under the site's identity."""
    return Update(model, key.sign(_signed_bytes(run, number, site, model, vector)), vector)


def verify_update(identity: bytes, run: bytes, number: int, site: str, model: bytes, update: Update) -> None:
    """Raise unless the update answers this model of this round and ``site`` itself signed it."""
    if update.model != model:
        raise Refusal("wrong-context", "the update answers another model than the round's")
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(
            update.signature, _signed_bytes(run, number, site, model, update.vector)
        )
    except InvalidSignature:
        raise Refusal("bad-signature", f"the update in {site}'s name is not signed by {site}") from None


def _standing_bytes(plan: bytes, site: str, state: str, code: str) -> bytes:
    return b"nexus standing 1\n" + plan + "\n".join((site, state, code)).encode()


def signed_standing(key: Ed25519PrivateKey, plan: bytes, site: str, state: str, code: str) -> Standing:
    """Where a site stands on a plan (its hash), under the site's identity."""
    return Standing(state, code, key.sign(_standing_bytes(plan, site, state, code)))


def verify_standing(identity: bytes, plan: bytes, site: str, standing: Standing) -> None:
    """Raise Refusal ``bad-signature`` unless ``site`` itself signed this about this plan."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(
            standing.signature, _standing_bytes(plan, site, standing.state, standing.code)
        )
    except InvalidSignature:
        raise Refusal("bad-signature", f"the notice in {site}'s name is not signed by {site}") from None
