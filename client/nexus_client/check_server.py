"""The part of ``check`` that connects to the server: is it there, is it the consortium's, does it know this site?"""

import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final

from nexus_common.address import split_address
from nexus_common.checks import CheckLine, line
from nexus_common.errors import NexusError

from nexus_client.clock import seconds_ahead
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.tls import dial, foreign_issuer, tls_context

CONNECT_SECONDS: Final = 5.0
WARN_SECONDS: Final = 60.0
QUESTION: Final = "\r\n".join(
    (
        "POST /v1/fleet/send-node-heartbeat HTTP/1.1",
        "Host: {}",
        "Content-Type: application/protobuf",
        "Content-Length: 0",
        "Connection: close",
        "",
        "",
    )
)
"""A sign of life that nobody signed: the server refuses it with 401, and with 404 to sites that it does not know."""


def check_server(place: SiteHome, settings: SiteSettings) -> Iterator[CheckLine]:
    """TCP, TLS in both directions, whether the server knows this site, and its clock, on one connection."""
    host, _ = split_address(settings.server)
    try:
        context = tls_context(place.keys)
    except NexusError as problem:
        yield line("server", "fault", *str(problem).split("; ", 1))
        return
    try:
        with dial(settings.server, settings.proxy, CONNECT_SECONDS) as plain:
            began = time.time()
            with context.wrap_socket(plain, server_hostname=host) as tls:
                answer = _answer(tls, host)
            took = time.time() - began
    except ssl.SSLError as problem:
        yield line("server", "fault", *_refused(place, settings, problem))
        return
    except OSError as problem:
        yield line("server", "fault", *_silence(settings, problem))
        return
    invite = f"join again with a line of `nexus-server invite {place.site}`"
    if not answer:  # TLS 1.3 has the server look at a certificate when all else is done
        found = f"{settings.server} ends the connection once it has seen this site's certificate: another consortium's?"
        yield line("server", "fault", found, f"ask the coordinator; {invite} --renew")
    elif answer.split(" ")[1:2] == ["404"]:
        found = f"{settings.server} knows no site with this certificate: revoked, or its keys were replaced"
        yield line("server", "fault", found, f"ask the coordinator whether {place.site} is enrolled; {invite}")
    else:
        yield line("server", "ok", f"{settings.server} answers over TLS 1.3 with this consortium's certificate")
        yield from _clock(answer, began + took / 2)


def _answer(tls: ssl.SSLSocket, host: str) -> str:
    """What the server says to the question; nothing where it ends the connection."""
    try:
        tls.sendall(QUESTION.format(host).encode())
        return tls.recv(4096).decode("latin-1")
    except ConnectionError:
        return ""


def _refused(place: SiteHome, settings: SiteSettings, problem: ssl.SSLError) -> tuple[str, str]:
    """Which of the two ends did not accept the other's certificate, whose that was, and the remedy."""
    address, unverified = settings.server, isinstance(problem, ssl.SSLCertVerificationError)
    try:
        issuer = foreign_issuer(problem, address, settings.proxy, place.keys)
    except (OSError, ValueError):
        issuer = "an issuer that it did not show again" if unverified else None
    if issuer is not None:
        return (
            f"the certificate at {address} came from {issuer!r}, not from the consortium: this network inspects TLS, "
            "or another server answers there",
            f"have {address} exempted from TLS inspection, or correct `server`; there is no switch to accept it. Where "
            "the consortium's own key was replaced, join again with a line of "
            f"`nexus-server invite {place.site} --renew`",
        )
    if isinstance(problem, ssl.SSLCertVerificationError):
        found = f"the certificate at {address} is the consortium's, but: {problem.verify_message}"
        return found, "correct `server`, or the clock"
    found = f"{address} refuses this site's certificate ({problem.reason})"
    return found, "ask the coordinator whether this site is enrolled there"


def _silence(settings: SiteSettings, problem: OSError) -> tuple[str, str]:
    """Why nobody answers, as far as it shows, and the remedy."""
    address, proxy = settings.server, settings.proxy
    host, port = split_address(address)
    if proxy is not None:
        found = f"no way to {address} through {proxy}: {problem.strerror or problem}"
        return found, f"is `proxy` in site.toml right, and does it pass CONNECT to {address}?"
    if isinstance(problem, socket.gaierror):
        return (
            f"no machine is known by the name {host}: {problem.strerror}",
            "correct `server`, or have it entered in DNS",
        )
    if isinstance(problem, TimeoutError):
        return f"{address} does not answer at all", f"a firewall drops it: have outgoing TCP to {address} opened"
    if isinstance(problem, ConnectionRefusedError):
        return f"{host} answers, but nothing listens on port {port}", "is nexus-server running, and is the port right?"
    return f"nobody answers at {address}: {problem.strerror or problem}", "does the network reach it, and the firewall?"


def _clock(answer: str, here: float) -> Iterator[CheckLine]:
    """This clock against the Date line of the server's answer, which has whole seconds."""
    dates = [line[5:].strip() for line in answer.split("\r\n") if line.lower().startswith("date:")]
    if (ahead := seconds_ahead(dates[0] if dates else "", here)) is None:
        yield line("clock", "warning", "the server did not say its time", "compare `timedatectl` on both machines")
        return
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server, which the agent allows for"
    if abs(ahead) > WARN_SECONDS:
        yield line("clock", "warning", found, "set the clock: `timedatectl set-ntp true`")
    else:
        yield line("clock", "ok", f"within {WARN_SECONDS:.0f} s of the server")
