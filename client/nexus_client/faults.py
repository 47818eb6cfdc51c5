"""What went wrong with the connection, in words with the remedy where one is known."""

import datetime as dt
from typing import Final

import httpx
from nexus_common.errors import NexusError

MOST_CHARACTERS: Final = 300
_STATUS: Final = {
    401: "refuses this site's signed time (HTTP 401): the clocks differ, and the server's is used now, or it has "
    "restarted",
    404: "does not know this site's certificate, or it has expired (HTTP 404); `nexus-client check` says which",
}


def in_words(problem: Exception, address: str, issuer: str | None = None) -> str:
    """One sentence; ``issuer`` is who made the certificate shown there, where that was not the consortium."""
    if isinstance(problem, NexusError):
        return str(problem)
    if isinstance(problem, httpx.HTTPStatusError):
        code = problem.response.status_code
        return f"{address} {_STATUS.get(code, f'answers HTTP {code}')}"
    text = str(problem)[:MOST_CHARACTERS]  # h11 repeats what it could not read
    if issuer is not None:
        return (
            f"the certificate at {address} came from {issuer!r}, not from the consortium: this network inspects TLS, "
            f"or another server answers there; have {address} exempted from TLS inspection (`nexus-client check` says "
            "what to do where the consortium's key was replaced)"
        )
    if "not yet valid" in text or "has expired" in text:
        return (
            f"the certificate at {address} is not valid at this machine's time, "
            f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC ({text}); set the clock: `timedatectl set-ntp true`"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"the certificate at {address} is not from this consortium, or does not name that host ({text}); "
            "`nexus-client check` says whose it is"
        )
    if "disconnected without sending" in text:  # TLS 1.3 has the server look at a certificate when all else is done
        text += " It stops, or it does not accept this site's certificate"
    return f"no connection to {address} ({type(problem).__name__}: {text}); `nexus-client check` looks for the cause"
