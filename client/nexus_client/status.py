"""What a site knows of itself without loading torch: model in use and certificate."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from nexus_common.disk import shortage
from nexus_common.errors import Refusal
from nexus_common.versions import StoredAdapter

from nexus_client.agent_api import StatusReport
from nexus_client.consent import Consent
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome


@dataclass(frozen=True)
class Progress:
    """What the site is doing, for ``status`` here; the server hears only ``preparing`` or ``ready``."""

    phase: str = "idle"
    done: int = 0
    total: int = 0
    run: str | None = None
    round: int | None = None
    last_round_at: float | None = None
    problem: str | None = None


def status(place: SiteHome) -> StatusReport:
    """The part of ``status`` that is on disk."""
    settings, version = place.settings(), StoredAdapter.read(place.federated_file)
    days, unreadable = _days_left(place.keys / "site.crt")
    standing = _standing(Consent(place))
    models = Shelf(place).models
    newest = next((held for held in reversed(models.held) if held.kind == "federated"), None)
    standing.setdefault("problem", unreadable or shortage(place.state))
    return StatusReport(
        site=place.site,
        server=settings.server,
        certificate_days_left=days,
        run=version.plan.name if version else None,
        version=version.number if version else None,
        rounds=version.plan.rounds if version else None,
        adapter=str(version.layout) if version else None,
        version_at=place.federated_file.stat().st_mtime if version else None,
        in_use=models.in_use,
        served=models.served,
        pinned=models.pinned is not None,
        why=models.reason,
        refused=f"{newest.name}: {newest.reason}" if newest and not newest.accepted else None,
        **standing,
    )


def _days_left(path: Path) -> tuple[int | None, str | None]:
    """Of a certificate, where there is one; or that it cannot be read."""
    try:
        expires = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except FileNotFoundError:
        return None, None
    except ValueError:
        return None, f"{path} cannot be read; `nexus-client check` says what to do"
    return int((expires - time.time()) // 86_400), None


def _standing(consent: Consent) -> dict[str, Any]:
    """What the policy says, and which plans wait for a person."""
    try:
        policy, approved, outdated = consent.policy, consent.approved(), consent.outdated()
    except Refusal as refusal:
        return {"problem": str(refusal)}
    known = {*policy.approved_plans, *policy.withdrawn_plans}
    return {
        "participation": policy.participation,
        "approved": approved.name if approved else None,
        "proposed": tuple(plan.name for plan in consent.proposals() if plan.hash.hex() not in known),
        **({"problem": outdated} if outdated else {}),
    }
