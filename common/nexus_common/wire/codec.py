"""From a message to the parcel that ``flower.py`` carries, and back; nothing looks at a value before its check."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

from nexus_common.errors import REFUSALS, Refusal
from nexus_common.holdings import unpack_holdings
from nexus_common.secagg.labels import label_of
from nexus_common.wire import messages
from nexus_common.wire.messages import Message

Field = int | str | bytes
MAX_FIELD_BYTES: Final = 1 << 20
HASH: Final = 32
SIGNATURE: Final = 64
MOST_WITHDRAWN: Final = 256  # hashes in one message
KINDS: Final[dict[str, type[Any]]] = {
    "propose": messages.Propose,
    "standing": messages.Standing,
    "prepare": messages.Prepare,
    "readiness": messages.Readiness,
    "train": messages.TrainRound,
    "trained": messages.Trained,
    "ask": messages.Ask,
    "say": messages.Say,
    "masked": messages.Masked,
    "deliver": messages.Deliver,
    "received": messages.Received,
    "recall": messages.Recall,
    "holds": messages.Holds,
    "given": messages.Given,
    "certify": messages.Certify,
    "certified": messages.Certified,
    "refused": messages.Refused,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_LENGTHS: Final = {"run": HASH, "model": HASH, "digest": HASH, "signature": SIGNATURE}
_STATES: Final[dict[type, tuple[str, ...]]] = {
    messages.Readiness: (messages.READY, messages.PREPARING),
    messages.Standing: (messages.PENDING, messages.APPROVED, messages.WITHDRAWN),
}


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
    if "code" in values and values["code"] not in REFUSALS and not (kind is messages.Standing and values["code"] == ""):
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


def purpose(message: Message) -> str:
    """What a message is for, as the audit log names it."""
    data = message.data if isinstance(message, messages.Ask | messages.Say) else b""
    return label_of(data) or _NAMES[type(message)]
