"""What server and site say to each other: few messages, fixed and typed."""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

READY: Final[Literal["ready"]] = "ready"
PREPARING: Final[Literal["preparing"]] = "preparing"
PENDING: Final = "pending"
APPROVED: Final = "approved"
WITHDRAWN: Final = "withdrawn"


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
