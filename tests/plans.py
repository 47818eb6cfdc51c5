"""Consortium plans for tests: made-up sites whose identity keys follow from their names, and enrolled with them."""

import hashlib
import json
import time
from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import certs
from nexus_common.plan import Plan
from nexus_server.records import SiteRow
from nexus_server.registry import Registry


def identity_of(name: str) -> Ed25519PrivateKey:
    """A made-up site's identity."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def member(name: str, key: Ed25519PrivateKey | None = None) -> dict[str, str]:
    """A site's entry in a plan."""
    public = certs.raw_identity(key or identity_of(name))
    return {"name": name, "key": public.hex(), "controller": f"Controller of {name}", "contact": f"Dr {name}"}


def plan_fields(names: Iterable[str], **settings: Any) -> dict[str, Any]:
    """The least that a plan of these sites says, and ``settings``; its adapter does not grow unless they say so."""
    fields: dict[str, Any] = {"name": "sim", "purpose": "tests", "end_date": "2099-12-31"}
    fields |= {"sites": [member(name) for name in sorted(names)], "growth": {"max_dendrites": 0}}
    return fields | settings


def make_plan(names: Iterable[str], **settings: Any) -> Plan:
    """A plan of these sites."""
    return Plan.model_validate(plan_fields(names, **settings), strict=False)


def of_another_release(plan: Plan) -> bytes:
    """A plan as a release wrote it that did not know distillation yet."""
    fields = json.loads(plan.canonical)
    del fields["local"]["distillation"]
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def enrol(registry: Registry, names: Iterable[str]) -> None:
    """Enrol made-up sites at a server."""
    now = time.time()
    for name in names:
        key = certs.raw_identity(identity_of(name))
        answers = (f"Controller of {name}", f"Dr {name}")
        registry.enrol(SiteRow(name, key[::-1], b"", key, b"", now + 9e6, now, None, None, *answers), b"", b"")
