"""The messages between server and site: few, fixed, typed, and bounded.  Unknown ones are refused.

A message is a kind, named fields and at most one vector of float32 values; ``flower.py`` carries it.  Decoding checks
kind, field names, types and lengths before anything looks at a value.  Nothing here is executed, unpickled or used as
a path.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nexus_common.errors import REFUSALS, Refusal
from nexus_common.holdings import unpack_holdings
from nexus_common.layout import Vector
from nexus_common.secagg.labels import label_of
from nexus_common.stages import Stage

Field = int | str | bytes
MAX_FIELD_BYTES: Final = 1 << 20
HASH: Final = 32
SIGNATURE: Final = 64
MOST_WITHDRAWN: Final = 256  # hashes in one message


@dataclass(frozen=True)
class Parcel:
    """A message on its way: what Flower carries."""

    kind: str
    fields: dict[str, Field]
    vector: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of what it says, without what carries it."""
        said = sum(len(str(value)) if isinstance(value, int) else len(value) for value in self.fields.values())
        return said + len(self.vector or b"")


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
    """To a site: train on this version and keep the change for the masked sum.

    ``stage`` is the number of the form that the version has (``Plan.stages``); in a trial all arms train.  ``use`` is 1
    where it is also the version in use; ``close`` is 1 in a run's last round, whose change is zero and which is there
    for what sites report of the version.  What a site answers depends on nothing that its model's name does not hold,
    or a server could have all others send zeros and read what remains.
    """

    run: bytes
    round: int
    stage: int
    use: int
    close: int
    vector: bytes


@dataclass(frozen=True)
class Trained:
    """From a site: it has trained on this model, and keeps what came of it."""

    model: bytes


@dataclass(frozen=True)
class Ask:
    """To a site: a message of secure aggregation (``secagg/messages.py``), before it an inbox or nothing."""

    run: bytes
    round: int
    inbox: bytes
    data: bytes


@dataclass(frozen=True)
class Say:
    """From a site: its reply in secure aggregation, but for an input."""

    data: bytes


@dataclass(frozen=True)
class Masked:
    """From a site: a masked input, the only message that holds anything of an update."""

    vector: bytes


@dataclass(frozen=True)
class Deliver:
    """To a site: the newest version, for its own use; nothing is asked.  Of a trial, that is the control alone.

    ``withdrawn`` are hashes of the versions of all runs that went out of use last, for a site that was away.
    """

    run: bytes
    round: int
    stage: int
    withdrawn: bytes
    vector: bytes


@dataclass(frozen=True)
class Received:
    """From a site: the delivered version is stored."""

    model: bytes


@dataclass(frozen=True)
class Recall:
    """To a site, from a server that was restored: which versions of this run have come to you?

    ``wanted`` is empty, or the SHA-256 of one that the server asks for.
    """

    run: bytes
    wanted: bytes


@dataclass(frozen=True)
class Holds:
    """From a site: the newest versions of the run that came to it and were not called back (``pack_holdings``)."""

    versions: bytes


@dataclass(frozen=True)
class Given:
    """From a site: a version as the server had sent it."""

    vector: bytes


@dataclass(frozen=True)
class Certify:
    """To a site: a new certificate for the key it has, and the CA that issued it with those before it; both PEM."""

    certificate: bytes
    authorities: bytes


@dataclass(frozen=True)
class Certified:
    """From a site: the certificate is stored; ``digest`` is the SHA-256 of its PEM text."""

    digest: bytes

    @classmethod
    def of(cls, pem: bytes) -> "Certified":
        """What a site says of a certificate that it has stored."""
        return cls(hashlib.sha256(pem).digest())


@dataclass(frozen=True)
class Refused:
    """From a site: no, with a code of ``errors.REFUSALS`` and nothing else."""

    code: str


Message = (
    Propose
    | Standing
    | Prepare
    | Readiness
    | TrainRound
    | Trained
    | Ask
    | Say
    | Masked
    | Deliver
    | Received
    | Recall
    | Holds
    | Given
    | Certify
    | Certified
    | Refused
)

KINDS: Final[dict[str, type[Any]]] = {
    "propose": Propose,
    "standing": Standing,
    "prepare": Prepare,
    "readiness": Readiness,
    "train": TrainRound,
    "trained": Trained,
    "ask": Ask,
    "say": Say,
    "masked": Masked,
    "deliver": Deliver,
    "received": Received,
    "recall": Recall,
    "holds": Holds,
    "given": Given,
    "certify": Certify,
    "certified": Certified,
    "refused": Refused,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_LENGTHS: Final = {"run": HASH, "model": HASH, "digest": HASH, "signature": SIGNATURE}
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
    if name in _LISTS and isinstance(value, bytes):
        _LISTS[name](value)
    if name in _LENGTHS and isinstance(value, bytes) and len(value) != _LENGTHS[name]:
        raise Refusal("malformed", f"{name} has {len(value)} bytes, expected {_LENGTHS[name]}")


def unpack_hashes(data: bytes) -> list[str]:
    """Hashes that stand one behind the other, as ``vector_hash`` writes them; Refusal ``malformed``.

    At most ``MOST_WITHDRAWN``, and none of them twice.
    """
    found = [data[at : at + HASH].hex() for at in range(0, len(data), HASH)]
    if len(data) % HASH or len(found) > MOST_WITHDRAWN or len(set(found)) < len(found):
        raise Refusal("malformed", f"{len(data)} bytes are no list of at most {MOST_WITHDRAWN} different hashes")
    return found


def _check_wanted(data: bytes) -> None:
    if len(data) not in (0, HASH):
        raise Refusal("malformed", f"wanted has {len(data)} bytes, expected none or {HASH}")


_LISTS: Final[dict[str, Callable[[bytes], object]]] = {
    "withdrawn": unpack_hashes,
    "wanted": _check_wanted,
    "versions": unpack_holdings,
}
"""Fields that are looked into when a message is decoded."""


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


def purpose(message: Message) -> str:
    """What a message is for, as the audit log names it."""
    data = message.data if isinstance(message, Ask | Say) else b""
    return label_of(data) or _NAMES[type(message)]


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
