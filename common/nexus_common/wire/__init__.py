"""The messages between server and site: few, fixed, typed, and bounded.  Unknown ones are refused.

A message is a kind, named fields and at most one vector of float32 values; ``flower.py`` carries it.  Decoding checks
kind, field names, types and lengths before anything looks at a value.  Nothing here is executed, unpickled or used as
a path.
"""

from nexus_common.wire.codec import (
    KINDS,
    MOST_WITHDRAWN,
    Field,
    Parcel,
    decode,
    encode,
    purpose,
    unpack_hashes,
)
from nexus_common.wire.messages import (
    APPROVED,
    PENDING,
    PREPARING,
    READY,
    WITHDRAWN,
    Ask,
    Certified,
    Certify,
    Deliver,
    Given,
    Holds,
    Masked,
    Message,
    Prepare,
    Propose,
    Readiness,
    Recall,
    Received,
    Refused,
    Say,
    Standing,
    Trained,
    TrainRound,
)
from nexus_common.wire.standing import (
    signed_standing,
    verify_standing,
)
from nexus_common.wire.weights import (
    model_hash,
    pack,
    unpack,
)

__all__ = [
    "APPROVED",
    "KINDS",
    "MOST_WITHDRAWN",
    "PENDING",
    "PREPARING",
    "READY",
    "WITHDRAWN",
    "Ask",
    "Certified",
    "Certify",
    "Deliver",
    "Field",
    "Given",
    "Holds",
    "Masked",
    "Message",
    "Parcel",
    "Prepare",
    "Propose",
    "Readiness",
    "Recall",
    "Received",
    "Refused",
    "Say",
    "Standing",
    "TrainRound",
    "Trained",
    "decode",
    "encode",
    "model_hash",
    "pack",
    "purpose",
    "signed_standing",
    "unpack",
    "unpack_hashes",
    "verify_standing",
]
