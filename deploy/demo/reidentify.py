"""Whose sentences were these?  A re-identification attack on an update.

The attacker knows the model that a site trained on, and candidates: questions with their passages, half of which the
site trained on.  Each candidate's own gradient is a pattern in the update; the candidates that explain most of it are
called members.  It is for layouts without salience and dendrites, whose inputs are the frozen pooled embeddings.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.material import RankingTask, Task
from nexus_client.workspace import Workspace
from nexus_common import certs
from nexus_common.layout import Layout, Vector
from nexus_common.secagg import codec
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.keys import SIGNATURE
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.plan import ProtocolPlan
from nexus_common.secagg.server import Server
from scipy.stats import hypergeom
from torch import Tensor
from torch.nn.functional import normalize

Rows = np.ndarray  # [n, 2, 384]: frozen embeddings of questions and of the passage of each
FLOOR, RIDGE = 1e-3, 1.0


@dataclass(frozen=True)
class Finding:
    """``found`` of ``members`` are among as many best candidates; guessing gives ``low`` to ``high`` in 99 of 100."""

    found: int
    members: int
    low: int
    high: int

    @property
    def chance(self) -> float:
        """What guessing finds on average."""
        return self.members / 2


def attack(
    layout: Layout, model: Vector, updates: Sequence[np.ndarray], members: Rows, others: Rows, temperature: float
) -> list[Finding]:
    """How many of ``members`` each of ``updates`` [dim] gives away, between as many ``others`` of the same kind."""
    n = len(members)
    if len(others) != n:
        raise ValueError(f"{n} members among {len(others)} others; take as many of both")
    patterns = _gradients(layout, model, np.concatenate([members, others]), temperature)
    moment = patterns.square().mean(0)
    patterns /= (moment + FLOOR * moment.mean()).sqrt()  # Adam divides each coordinate by such a root
    patterns = normalize(patterns, dim=1)
    seen = -torch.from_numpy(
        np.stack([layout.split(u.astype(np.float32))["projection.weight"].ravel() for u in updates])
    )
    # ridge regression of the update on the patterns: what one candidate explains is not counted for its neighbours
    weights = torch.linalg.solve(patterns @ patterns.T + RIDGE * torch.eye(2 * n), patterns @ normalize(seen, dim=1).T)
    low, high = (int(x) for x in hypergeom.interval(0.99, 2 * n, n, n))
    top = weights.argsort(dim=0, descending=True, stable=True)[:n]
    return [Finding(int((column < n).sum()), n, low, high) for column in top.T]


def _gradients(layout: Layout, model: Vector, rows: Rows, temperature: float) -> Tensor:
    """[n, 384 * 384]: what each row alone would change of W, its question against the passages of all rows."""
    parts = {name: torch.from_numpy(value.copy()) for name, value in layout.split(model).items()}
    passages, right = np.unique(rows[:, 1], axis=0, return_inverse=True)
    x, p = torch.from_numpy(rows[:, 0].copy()), torch.from_numpy(passages)  # [n, 384], [m, 384]
    y, z = (a @ parts["projection.weight"].T + parts["projection.bias"] for a in (x, p))
    y_length, z_length = y.norm(dim=1, keepdim=True), z.norm(dim=1, keepdim=True)
    y, z = y / y_length, z / z_length
    pull = torch.softmax(y @ z.T / temperature, 1)  # [n, m]
    pull[torch.arange(len(x)), torch.from_numpy(right.ravel())] -= 1
    out = torch.empty(len(x), x.shape[1] ** 2)
    for i, row in enumerate(pull):
        on_y, on_z = row @ z, torch.outer(row, y[i])
        on_y = (on_y - on_y.dot(y[i]) * y[i]) / y_length[i]
        on_z = (on_z - (on_z * z).sum(1, keepdim=True) * z) / z_length
        out[i] = torch.addmm(torch.outer(on_y, x[i]), on_z.T, p).ravel()
    return out


class _Record:
    """``secagg.client.Record`` of a site that takes part once."""

    def last_epoch(self) -> int:
        return 0

    def begin_epoch(self, number: int) -> None: ...

    def inputs_sent(self) -> int:
        return 0

    def count_input(self) -> None: ...

    def was_opened(self, model_hash: bytes) -> bool:  # noqa: ARG002  the one round is the first
        return False

    def note_opened(self, *names: bytes) -> None: ...


def masked_round(
    plan: ProtocolPlan, vectors: Sequence[np.ndarray], random: Callable[[int], bytes] = os.urandom
) -> tuple[list[np.ndarray], np.ndarray]:
    """One round of the plan's sites with keys of their own: what each sends, read as an update, and the mean."""
    keys = [Ed25519PrivateKey.from_private_bytes(random(32)) for _ in vectors]
    roster = tuple((name, certs.raw_identity(key)) for (name, _), key in zip(plan.roster, keys, strict=True))
    plan, model = replace(plan, roster=roster), bytes(32)
    sites = [Client(plan, name, key, _Record(), random) for (name, _), key in zip(roster, keys, strict=True)]
    server, sent = Server(plan, 1), list[bytes]()
    for message in (server.start, server.adverts):
        for site in sites:
            server.receive(site.handle(message()) or b"")
    for i, (site, vector) in enumerate(zip(sites, vectors, strict=True)):
        site.handle(server.inbox(i))
        offer = Offer(model, lambda vector=vector: codec.encode(plan, vector, 1, random))  # type: ignore[misc]
        sent.append(site.handle(server.round(0, model), offer) or b"")
    for data in sent:
        server.receive(data)
    for message in (server.commit, lambda: server.open().message):
        for site in sites:
            server.receive(site.handle(message()) or b"")
    mean, _ = codec.decode(plan, server.total(), len(sites))
    integers = (data[-SIGNATURE - (plan.dim + 1) * (plan.mod_bits // 8) : -SIGNATURE] for data in sent)
    return [unpack_signed(one, plan.mod_bits)[:-1] * (plan.range / plan.q) for one in integers], mean


def rows_of(workspace: Workspace, tasks: Sequence[Task]) -> Rows:
    """Each question with the first of its passages."""
    found = [t for t in tasks if isinstance(t, RankingTask)]
    pairs = [(q, t.passages[right[0]]) for t in found for q, right in zip(t.queries, t.positives, strict=True)]
    return workspace.base_vectors(np.array(pairs, np.int64).ravel()).reshape(len(pairs), 2, -1)
