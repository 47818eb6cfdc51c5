"""What a site knows of itself without loading torch: version in use and certificate."""

import time

from cryptography import x509

from nexus_client.agent_api import StatusReport
from nexus_client.site import SiteHome
from nexus_client.versions import StoredAdapter, federated_file


def status(place: SiteHome) -> StatusReport:
    """The part of ``status`` that is on disk."""
    settings, version = place.settings(), StoredAdapter.read(federated_file(place.state))
    days = None
    if (path := place.keys / "site.crt").exists():
        expires = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
        days = int((expires - time.time()) // 86_400)
    return StatusReport(
        site=place.site,
        server=settings.server,
        certificate_days_left=days,
        run=version.plan.name if version else None,
        version=version.number if version else None,
        rounds=version.plan.rounds if version else None,
        version_at=federated_file(place.state).stat().st_mtime if version else None,
    )
