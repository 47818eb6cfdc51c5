"""The protocol plan of nexus-sa/1: roster, threshold and numbers of one layout's rounds (specification, "Plan").

Everybody may read it.  The consortium plan that people approve derives it, so a site takes one only if its hash is
among the approved, and then still checks every number: no approval can lower a bound of the protocol.
"""

import hashlib
import io
import math
import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from nexus_common.errors import Refusal
from nexus_common.secagg.labels import label

_LABEL: Final = label("plan")
_NAME: Final = re.compile("[a-z0-9.-]{1,64}")
_NUMBERS: Final = struct.Struct("<BB?HI IBBB ddHI ddB")  # the fields of ``ProtocolPlan`` from t on, in its order
_LIMITS: Final = (("strict", 0, 1), ("codec", 0, 1), ("slots", 1, 1024), ("rounds", 1, 2**32 - 1), ("dim", 1, 2**24))


@dataclass(frozen=True)
class ProtocolPlan:
    """One plan; sites are numbered in roster order.  Building one checks nothing: see ``check`` and ``load``."""

    run: str
    model: bytes  # [32]
    roster: tuple[tuple[str, bytes], ...]  # n x (name, Ed25519 public key [32])
    t: int
    min_cohort: int
    strict: bool
    slots: int
    rounds: int
    dim: int
    value_bits: int
    mod_bits: int
    codec: int
    clip: float
    range: float
    weight_max: int
    weight_unit: int
    noise: float
    sampling: float
    honest: int

    @property
    def n(self) -> int:
        """Number of sites."""
        return len(self.roster)

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, by number."""
        return tuple(name for name, _ in self.roster)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the dim + 1 integers that travel."""
        return (self.dim + 1) * (self.mod_bits // 8)

    @property
    def quorum(self) -> int:
        """The fewest sites whose sum is ever opened."""
        return max(self.t, self.min_cohort)

    @property
    def q(self) -> int:
        """Q, the largest integer of an encoded coordinate."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def sigma(self) -> float:
        """Codec 1: standard deviation of each site's own noise, in integer units."""
        delta: float = self.clip * (self.q / self.range) + math.sqrt(self.dim)
        return self.noise * delta / math.sqrt(self.honest)

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes; Refusal ``malformed`` where a value does not fit its field."""
        numbers = astuple(self)[3:]
        try:
            head, tail = struct.pack("<B", self.n), _NUMBERS.pack(*numbers)
        except (struct.error, OverflowError) as error:
            raise Refusal("malformed", f"{self.n} sites and {numbers} do not all fit their fields: {error}") from None
        sites = (_string(name) + _bytes32(key, f"{name}'s key") for name, key in self.roster)
        return _LABEL + _string(self.run) + _bytes32(self.model, "model") + head + b"".join(sites) + tail

    @cached_property
    def hash(self) -> bytes:
        """``plan_hash``: what a policy approves and every advert signs."""
        return hashlib.sha256(self.encoded).digest()


def threshold(n: int) -> int:
    """The one threshold of n sites: two cohorts of t share more than n/3 of them ("What holds, and why")."""
    return 2 * n // 3 + 1


def load(data: bytes, approved: Collection[bytes], name: str, key: bytes) -> ProtocolPlan:
    """The plan that ``data`` is, for the site ``name`` with the Ed25519 public key ``key``.

    Refuses, in the order of the specification's table: ``plan-not-approved`` unless its hash [32] is in ``approved``,
    the codes of ``decode`` and ``check``, and ``own-cert``.
    """
    plan_hash = hashlib.sha256(data).digest()
    if plan_hash not in approved:
        raise Refusal(
            "plan-not-approved",
            f"plan {plan_hash.hex()} is none of the {len(approved)} that this site approves; compare the plan words "
            "with the other sites, and approve the plan if they are the same",
        )
    plan = decode(data)
    check(plan)
    if (name, key) not in plan.roster:
        listed = f"; its {name!r} has another key" if name in dict(plan.roster) else ""
        raise Refusal(
            "own-cert",
            f"site {name!r} with key {key.hex()} is none of the roster's {plan.n}{listed}; the consortium has to agree "
            "on a plan with this site's own name and key",
        )
    return plan


def decode(data: bytes) -> ProtocolPlan:
    """Read what ``encoded`` writes; Refusal ``malformed`` for all else, so every plan has exactly one spelling."""
    source = io.BytesIO(data)
    if _take(source, len(_LABEL)) != _LABEL:
        raise Refusal("malformed", f"a plan starts with {_LABEL!r}; is this another version's, or no plan?")
    run = _read_string(source)
    model = _take(source, 32)
    (n,) = _take(source, 1)
    roster = tuple((_read_string(source), _take(source, 32)) for _ in range(n))
    plan = ProtocolPlan(run, model, roster, *_NUMBERS.unpack(_take(source, _NUMBERS.size)))
    if plan.encoded != data:  # which also checks the names
        raise Refusal("malformed", f"{len(data)} bytes for a plan of {len(plan.encoded)}, or strict is not 0 or 1")
    return plan


def check(plan: ProtocolPlan) -> None:
    """Refuse a plan, decoded or built, whose numbers the protocol does not allow.

    Refusal ``roster``, ``threshold``, ``cohort-too-small``, ``malformed`` or ``codec``: the first of the table's rows.
    """
    if not 3 <= plan.n <= 64:
        raise Refusal("roster", f"{plan.n} sites; secure aggregation takes 3 to 64")
    for (before, _), (after, _) in pairwise(plan.roster):
        if before >= after:
            raise Refusal("roster", f"{after!r} after {before!r}; list the sites by rising name, each of them once")
    keys = len({key for _, key in plan.roster})
    if keys != plan.n:
        raise Refusal("roster", f"{plan.n} sites with {keys} different keys; each site enrols with a key of its own")
    if plan.t != threshold(plan.n):
        raise Refusal("threshold", f"t = {plan.t}; {plan.n} sites take t = {threshold(plan.n)}")
    if not 3 <= plan.min_cohort <= plan.n:
        raise Refusal("cohort-too-small", f"min_cohort = {plan.min_cohort}; {plan.n} sites take 3 to {plan.n}")
    for name, low, high in _LIMITS:
        if not low <= getattr(plan, name) <= high:
            raise Refusal("malformed", f"{name} = {getattr(plan, name)}; a plan takes {low} to {high}")
    decode(plan.encoded)  # a plan that was built can be sent, too
    for holds, text in _codec_bounds(plan):
        if not holds:
            raise Refusal("codec", text)


def _codec_bounds(plan: ProtocolPlan) -> Iterator[tuple[bool, str]]:
    """The bounds of "Codecs" with the words of their refusal; a later one may rely on those before it."""
    yield plan.mod_bits in (24, 32), f"mod_bits = {plan.mod_bits}; take 24 or 32"
    yield 8 <= plan.value_bits <= 30, f"value_bits = {plan.value_bits}; take 8 to 30"
    q, n, most = plan.q, plan.n, 2 ** (plan.mod_bits - 1) - 1
    yield 0 < plan.clip < math.inf, f"clip = {plan.clip}; take a finite number above 0"
    yield 0 < plan.range < math.inf, f"range = {plan.range}; take a finite number above 0"
    yield 1 <= plan.weight_max <= q, f"weight_max = {plan.weight_max}; take 1 to {q}"
    finite = math.isfinite(plan.range * plan.weight_max) and math.isfinite(q / plan.range)
    yield finite, f"range = {plan.range}; no finite scale belongs to it"
    yield plan.weight_unit >= 1, f"weight_unit = {plan.weight_unit}; take 1 or more"
    wraps = f"above {most}, so a sum could wrap; lower value_bits or take mod_bits = 32"
    if plan.codec == 0:
        unused = (plan.noise, plan.sampling, plan.honest)
        yield unused == (0, 0, 0), f"noise, sampling, honest = {unused}; codec 0 adds no noise, they must be 0"
        yield n * q <= most, f"{n} sites x {q} = {n * q}, {wraps}"
        return
    yield plan.weight_max == 1, f"weight_max = {plan.weight_max}; under codec 1 every weight is 1"
    yield plan.noise > 0, f"noise = {plan.noise}; codec 1 takes a number above 0"
    yield 0 < plan.sampling <= 1, f"sampling = {plan.sampling}; take a probability above 0, at most 1"
    yield 1 <= plan.honest <= plan.t, f"honest = {plan.honest}; take 1 to t = {plan.t}"
    sigma = plan.sigma
    tail = 8 * sigma * math.sqrt(n)
    yield sigma >= 256, f"sigma = {sigma:.6g}, below 256; raise noise or value_bits, or lower range"
    # Python compares int and float exactly: this is n Q + ceil(tail) <= most, and refuses an infinite tail as well.
    yield tail <= most - n * q, f"{n} sites x {q} + a noise tail of {tail:.6g}, {wraps}"


def _string(text: str) -> bytes:
    if not _NAME.fullmatch(text):
        raise Refusal("malformed", f"name {text!r:.80}; take 1 to 64 characters of a-z, 0-9, '.' and '-'")
    return bytes([len(text)]) + text.encode("ascii")


def _read_string(source: io.BytesIO) -> str:
    (length,) = _take(source, 1)
    return _take(source, length).decode("latin-1")  # any bytes are text here; ``_string`` refuses the wrong ones


def _bytes32(value: bytes, what: str) -> bytes:
    if len(value) != 32:
        raise Refusal("malformed", f"{what} has {len(value)} bytes, not 32")
    return value


def _take(source: io.BytesIO, size: int) -> bytes:
    found = source.read(size)
    if len(found) != size:
        raise Refusal("malformed", f"the plan ends at byte {source.tell()}, within a field of {size}")
    return found
