"""What the agent's socket and the commands exchange: reports as data, nothing that needs torch or Flower."""

from typing import Final

from nexus_common.report import QualityLine
from nexus_common.rpc import Body

SERVICE: Final = "nexus.Agent"


class StatusReport(Body):
    """Agent, model in use, last round, what waits for a person.

    ``version`` came last; ``why`` is the model in use ``in_use``, and ``refused`` why the last version is not.
    ``served`` is what clients of ``serve`` get who ask for ``nexus``, None while nobody has.
    """

    site: str
    server: str
    running: bool = False
    connection: str | None = None
    last_contact: float | None = None
    phase: str | None = None
    done: int = 0
    total: int = 0
    run: str | None = None
    version: int | None = None
    rounds: int | None = None
    adapter: str | None = None
    version_at: float | None = None
    in_use: str = "base"
    served: str | None = None
    pinned: bool = False
    why: str = ""
    refused: str | None = None
    last_round_at: float | None = None
    certificate_days_left: int | None = None
    participation: str | None = None
    approved: str | None = None
    proposed: tuple[str, ...] = ()
    problem: str | None = None
    metrics: str | None = None  # of a running agent: where they are served, or why they are not


class UnreadPath(Body):
    """A path of ``site.toml`` that the agent cannot read, and where that ends: at itself, in it, or a folder above."""

    path: str
    at: str
    missing: bool


class DataAccess(Body):
    """Under which account the agent works, how many paths it was to read, and which of them it cannot."""

    account: str
    paths: int
    unread: tuple[UnreadPath, ...]


class PreviewRequest(Body):
    """How many sample rows."""

    rows: int = 3


class PreviewReport(Body):
    """What would be trained on."""

    site: str
    files: dict[str, int]
    training: int
    choose: int
    judge: int
    left_out: int
    samples: list[dict[str, str]]


class Example(Body):
    """A question whose right passage rose, and its rank (1 is first) with the base and the federated model."""

    question: str
    passage: str
    rank_before: int
    rank_after: int


class EvaluateReport(Body):
    """All models side by side; the examples are private text and stay on this machine.

    ``in_use`` is a model's name, ``why`` it is, and ``verdict`` is on it against the base model.
    """

    site: str
    rows: int
    run: str | None
    version: int | None
    in_use: str = "base"
    pinned: bool = False
    why: str = ""
    verdict: str = ""
    lines: list[QualityLine]
    examples: list[Example]
    warnings: list[str]
