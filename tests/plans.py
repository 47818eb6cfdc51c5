"""Consortium plans for tests: made-up sites whose identity keys follow from their names."""

import hashlib
from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import certs
from nexus_common.plan import Plan


def identity_of(name: str) -> Ed25519PrivateKey:
    """A made-up site's identity."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def member(name: str, key: Ed25519PrivateKey | None = None) -> dict[str, str]:
    """A site's entry in a plan."""
    public = certs.raw_identity(key or identity_of(name))
    return {"name": name, "key": public.hex(), "controller": f"Controller of {name}", "contact": f"Dr {name}"}


def plan_fields(names: Iterable[str], **settings: Any) -> dict[str, Any]:
    """The least that a plan of these sites says, and ``settings``."""
    fields = {"name": "sim", "purpose": "tests", "end_date": "2099-12-31", "sites": [member(n) for n in sorted(names)]}
    return fields | settings


def make_plan(names: Iterable[str], **settings: Any) -> Plan:
    """A plan of these sites."""
    return Plan.model_validate(plan_fields(names, **settings), strict=False)
