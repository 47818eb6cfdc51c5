"""Series under which each alert fires, and such under which it does not, in promtool's notation.

``3x60`` is a 3 a minute for an hour.  Time begins at 0, so a timestamp of 0 is as old as the case is long.
"""

from dataclasses import dataclass
from typing import Final

SERVER: Final = {"job": "nexus-server", "instance": "s"}
SITE: Final = {"job": "nexus-client", "instance": "c", "site": "hospital-a"}
PROJECT: Final = {"project": "consortium"}
DAY: Final = 86_400
LONG: Final = "x2000"


@dataclass(frozen=True)
class Fires:
    """``minutes`` after the start, with ``labels`` besides its severity."""

    told: str
    minutes: int
    series: dict[str, str]
    summary: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Not:
    """It does not, ``minutes`` after the start."""

    told: str
    minutes: int
    series: dict[str, str]


def series(name: str, *labels: dict[str, str]) -> str:
    """In Prometheus's notation."""
    joined = {key: value for some in labels for key, value in some.items()}
    return name + "{" + ", ".join(f'{key}="{value}"' for key, value in joined.items()) + "}"


def of_server(name: str, **labels: str) -> str:
    """One of the server's."""
    return series(f"nexus_server_{name}", SERVER, labels)


def of_site(name: str, **labels: str) -> str:
    """One of a site's agent."""
    return series(f"nexus_client_{name}", SITE, labels)


def phases(least: float, most: float) -> dict[str, str]:
    """A training phase a minute, that took between ``least`` and ``most`` seconds."""
    bounds = (least, most, float("inf"))
    return {
        of_server(
            "round_phase_duration_seconds_bucket", **PROJECT, phase="training", le=str(bound).replace("inf", "+Inf")
        ): (f"0+{int(bound >= most)}{LONG}")
        for bound in bounds
    }


SEEN = of_server("site_last_seen_timestamp_seconds", site="hospital-b")
WAITING, RECALLING, RESTING, IDLE, TRAINING, OPENING = (
    of_server("phase_since_timestamp_seconds", **PROJECT, phase=phase)
    for phase in ("waiting", "recalling", "resting", "idle", "training", "opening")
)
SCORE, SCORE_IN_USE = (
    of_server("model_quality_ratio", **PROJECT, slot=slot, metric="score") for slot in ("judged", "in_use")
)
REFUSED, PAUSED = (of_server("refusals_total", code=code) for code in ("malformed", "paused"))
SITE_REFUSED, SITE_PAUSED = (of_site("refusals_total", code=code) for code in ("unknown-base-model", "paused"))
SITE_FREE, SITE_SIZE = (of_site(f"storage_{kind}_bytes") for kind in ("free", "size"))
PROPOSED = of_server("plan_waiting_since_timestamp_seconds", **PROJECT)
FAULTING = of_server("faulting", **PROJECT)
FREE, SIZE = (of_server(f"storage_{kind}_bytes", volume="state") for kind in ("free", "size"))
FAILED, COMMITTED = (of_server("rounds_total", **PROJECT, outcome=outcome) for outcome in ("failed", "committed"))
CONTACT, AHEAD = of_site("server_last_contact_timestamp_seconds"), of_site("clock_ahead_seconds")
BREAKS = of_site("connection_faults_total")
ZEROS = of_site("rounds_total", outcome="zeros")
CERTIFICATE = of_server("certificate_expiry_timestamp_seconds", subject="site:hospital-b")
SITE_CERTIFICATE = of_site("certificate_expiry_timestamp_seconds")
SUBJECT = SERVER | {"subject": "site:hospital-b"}
VALID, VERIFIED, BUILD = (
    of_server(name) for name in ("audit_chain_valid", "audit_chain_verified_timestamp_seconds", "build_info")
)
SITE_VALID, SITE_VERIFIED, SITE_BUILD = (
    of_site(name) for name in ("audit_chain_valid", "audit_chain_verified_timestamp_seconds", "build_info")
)
SAVED, SITE_SAVED = of_server("backed_up_timestamp_seconds"), of_site("backed_up_timestamp_seconds")
OUTDATED = of_server("backup_outdated")
NIGHTS = {WAITING: "0x479 _x960 0x480", RESTING: "_x480 0x959 _x480"}  # of eight hours
NONE_NEW = {COMMITTED: "5" + LONG}
SELDOM = "0+1x2 3x3 4x3 " + " ".join(f"{count}x9" for count in range(5, 30))
"""Refusals of one site: four in the first minutes, then one every ten minutes."""
AUDIT, SITE_AUDIT = {VALID: "1" + LONG, BUILD: "1" + LONG}, {SITE_VALID: "1" + LONG, SITE_BUILD: "1" + LONG}
UP, SITE_UP = series("up", SERVER), series("up", SITE)

OF_SERVER: Final[dict[str, list[Fires | Not]]] = {
    "NexusServerDown": [
        Fires("it is down", 6, {UP: "0x10"}, "nexus-server at s does not answer", SERVER),
        Not("it was down for three minutes", 6, {UP: "0x2 1x10"}),
    ],
    "NexusServerNotScraped": [
        Fires(
            "another job alone",
            6,
            {'up{job="x"}': "1x10"},
            "Prometheus has no job nexus-server",
            {"job": "nexus-server"},
        ),
        Not("it is scraped, and down", 6, {UP: "0x10"}),
    ],
    "NexusSiteSilent": [
        Fires("silent", 22, {SEEN: "0x60"}, "hospital-b has been silent for 22m 0s", SERVER | {"site": "hospital-b"}),
        Not("heard of a quarter of an hour ago", 15, {SEEN: "0x60"}),
        Not("a run waits for it", 60, {SEEN: "0x60", WAITING: "600x60"}),
        Not("a restored server waits for it", 60, {SEEN: "0x60", RECALLING: "600x60"}),
    ],
    "NexusPlanWaits": [
        Fires(
            "for eight days",
            8 * 24 * 60,
            {PROPOSED: "0x12000"},
            "a plan has waited 8d 0h 0m 0s for sites to approve it",
            SERVER | PROJECT,
        ),
        Not("for six days", 6 * 24 * 60, {PROPOSED: "0x12000"}),
        Not("it was approved after six", 8 * 24 * 60, {PROPOSED: "0x8640 stale"}),
    ],
    "NexusRunWaits": [
        *[
            Fires(
                told,
                1505,
                waits | NONE_NEW,
                "no round was committed for a day, and the run waited for sites",
                {"instance": "s", **PROJECT},
            )
            for told, waits in {
                "for 25 hours and five minutes": {WAITING: "0" + LONG},
                "night after night": NIGHTS,
                "a restored server": {RECALLING: "0" + LONG},
                "it came up again meanwhile": {WAITING: "0x700 _x20 43260x900", IDLE: "_x720 43200 stale"},
            }.items()
        ],
        Not("for not quite 25 hours", 1495, {WAITING: "0" + LONG} | NONE_NEW),
        Not("with a round between", 1800, {WAITING: "0" + LONG, COMMITTED: "5x900 6x900"}),
        Not("in the second night a round is committed", 1520, NIGHTS | {COMMITTED: "5x1455 6x900"}),
        Not("it rests, and had all it needs", 1800, {RESTING: "0" + LONG} | NONE_NEW),
        Not("the run was stopped", 1700, {WAITING: "0x1400", IDLE: "_x1400 0x600"} | NONE_NEW),
        Not("the run began half a day ago", 1700, {IDLE: "0x900", WAITING: "_x900 54000x900"} | NONE_NEW),
    ],
    "NexusRoundStuck": [
        Fires(
            "a quarter of an hour where 100 s are usual",
            135,
            {TRAINING: "7200" + LONG, **phases(30, 100)},
            "a round's training has taken 15m 0s",
            {"instance": "s", **PROJECT, "phase": "training"},
        ),
        Fires(
            "an opening, never measured before",
            65,
            {OPENING: "0" + LONG},
            "a round's opening has taken 1h 5m 0s",
            SERVER | PROJECT | {"phase": "opening"},
        ),
        Not("an opening of 55 minutes", 55, {OPENING: "0" + LONG}),
        Not("nine minutes", 129, {TRAINING: "7200" + LONG, **phases(30, 100)}),
        Not("two hours of training, where nothing is known yet", 120, {TRAINING: "0" + LONG}),
        Not("a quarter of an hour where as much is usual", 135, {TRAINING: "7200" + LONG, **phases(300, 1000)}),
    ],
    "NexusRoundsFail": [
        Fires(
            "one a minute",
            50,
            {FAILED: "0+1x60", COMMITTED: "5x60"},
            "rounds fail: 50 in an hour, and none was committed",
            {"instance": "s", **PROJECT, "outcome": "failed"},
        ),
        Not("and others are committed", 50, {FAILED: "0+1x60", COMMITTED: "5+1x60"}),
        Not("one, on a new day", 50, {FAILED: "0x20 1x60", COMMITTED: "5x60"}),
    ],
    "NexusServerFaults": [
        Fires(
            "at every turn",
            11,
            {FAULTING: "1x30"},
            "the server's rounds meet a fault over and over",
            SERVER | PROJECT,
        ),
        Fires(
            "in each round, and gathering goes well",
            20,
            {FAULTING: "1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1"},
            "the server's rounds meet a fault over and over",
            SERVER | PROJECT,
        ),
        Not("for five minutes", 20, {FAULTING: "0x2 1x5 0x20"}),
        Not("none", 20, {FAULTING: "0x30"}),
    ],
    "NexusQualityDrop": [
        Fires(
            "by six points",
            25,
            {SCORE: "0.80x10 0.74x60"},
            "the score of the newest judged version has fallen to 74%",
            SERVER | PROJECT | {"slot": "judged", "metric": "score"},
        ),
        Not("the version in use alone, of another run", 25, {SCORE: "0.80x70", SCORE_IN_USE: "0.80x10 0.74x60"}),
        Not("by four points", 25, {SCORE: "0.80x10 0.76x60"}),
        Not("for five minutes", 25, {SCORE: "0.80x10 0.74x4 0.80x60"}),
    ],
    "NexusRefusalSpike": [
        Fires(
            "one a minute",
            20,
            {REFUSED: "0+1x30"},
            "15 refusals with malformed",
            {"instance": "s", "code": "malformed"},
        ),
        Fires(
            "one site, every ten minutes at last",
            240,
            {REFUSED: SELDOM},
            "12 refusals with malformed",
            {"instance": "s", "code": "malformed"},
        ),
        Not("a site that has paused", 240, {PAUSED: SELDOM}),
        Not("seven, and no more", 20, {REFUSED: "0+1x7 7x30"}),
        Not("ten, half an hour ago", 45, {REFUSED: "0+1x9 10x60"}),
    ],
    "NexusCertificateEnding": [
        Fires(
            "in 13 days",
            61,
            {CERTIFICATE: f"{13 * DAY}x90"},
            "the certificate of site:hospital-b ends in 12d 22h 59m 0s",
            SUBJECT,
        ),
        Not("in 15 days", 61, {CERTIFICATE: f"{15 * DAY}x90"}),
        Not("in 2 days, which the other alert tells", 61, {CERTIFICATE: f"{2 * DAY}x90"}),
    ],
    "NexusCertificateEndsInDays": [
        Fires(
            "in 2 days",
            61,
            {CERTIFICATE: f"{2 * DAY}x90"},
            "the certificate of site:hospital-b ends in 1d 22h 59m 0s",
            SUBJECT,
        ),
        Not("in 4 days", 61, {CERTIFICATE: f"{4 * DAY}x90"}),
    ],
    "NexusDiskLow": [
        Fires(
            "a twelfth is free",
            16,
            {FREE: "1x30", SIZE: "12x30"},
            "8.333% of the disk of the state folder is free",
            SERVER | {"volume": "state"},
        ),
        Not("an eighth is free", 16, {FREE: "1x30", SIZE: "8x30"}),
        Not("it was full for ten minutes", 16, {FREE: "0x10 4x30", SIZE: "12x40"}),
    ],
    "NexusAuditChainBroken": [
        Fires("a line was changed", 7, {VALID: "1x5 0x10"}, "the server's audit log is not whole", SERVER),
        Not("it is whole", 7, {VALID: "1x15"}),
    ],
    "NexusAuditNotVerified": [
        Fires(
            "for four hours",
            245,
            AUDIT | {VERIFIED: "0" + LONG},
            "the server's audit log was not verified for hours",
            SERVER,
        ),
        Fires("it cannot be read", 61, {BUILD: "1x90"}, "the server's audit log was not verified for hours", SERVER),
        Not("for two hours", 120, AUDIT | {VERIFIED: "0" + LONG}),
        Not("it is verified every hour", 300, AUDIT | {VERIFIED: "0+60" + LONG}),
    ],
    "NexusBackupOld": [
        Fires("for nine days", 9 * 24 * 60, {SAVED: "0x13000"}, "the server was not backed up for 9d 0h 0m 0s", SERVER),
        Not("for a week", 7 * 24 * 60, {SAVED: "0x12000"}),
        Not("it was, after nine", 9 * 24 * 60 + 10, {SAVED: f"0x12960 {9 * DAY}x20"}),
    ],
    "NexusBackupOutdated": [
        Fires(
            "for two hours",
            120,
            {OUTDATED: "1x130"},
            "the server's last backup has a key that the CA no longer has",
            SERVER,
        ),
        Not("it was backed up within the hour", 120, {OUTDATED: "1x50 0x80"}),
    ],
}
OF_SITE: Final[dict[str, list[Fires | Not]]] = {
    "NexusAgentDown": [
        Fires("it is down", 6, {SITE_UP: "0x10"}, "the agent of hospital-a does not answer", SITE),
        Not("it was down for three minutes", 6, {SITE_UP: "0x2 1x10"}),
    ],
    "NexusAgentNotScraped": [
        Fires(
            "another job alone",
            6,
            {'up{job="x"}': "1x10"},
            "Prometheus has no job nexus-client",
            {"job": "nexus-client"},
        ),
        Not("it is scraped, and down", 6, {SITE_UP: "0x10"}),
    ],
    "NexusServerNotReached": [
        Fires(
            "for over a quarter of an hour",
            22,
            {CONTACT: "0x60", SITE_BUILD: "1x60"},
            "hospital-a does not reach the consortium's server",
            SITE,
        ),
        Fires(
            "not since the start", 6, {SITE_BUILD: "1x60"}, "hospital-a does not reach the consortium's server", SITE
        ),
        Not("for a quarter of an hour", 15, {CONTACT: "0x60", SITE_BUILD: "1x60"}),
    ],
    "NexusSiteConnectionBreaks": [
        Fires(
            "every three minutes",
            120,
            {BREAKS: " ".join(f"{count}x2" for count in range(60)), CONTACT: "0+60x150"},
            "the connection of hospital-a broke 20 times in an hour",
            SITE,
        ),
        Not(
            "the server was away for ten minutes",
            60,
            {BREAKS: "0x9 0+2x10 20x60", CONTACT: "0x20 1200+60x60"},
        ),
        Not("the server is not reached, which is another alert", 120, {BREAKS: "0+2x150", CONTACT: "0x150"}),
        Not("now and then", 120, {BREAKS: "0x9 1x19 2x19 3x19 4x19 5x19 6x19", CONTACT: "0+60x150"}),
    ],
    "NexusSiteClockWrong": [
        Fires("two minutes slow", 11, {AHEAD: "-120x30"}, "the clock of hospital-a is off by 2m 0s", SITE),
        Not("half a minute fast", 11, {AHEAD: "30x30"}),
        Not("set after five minutes", 11, {AHEAD: "120x4 0x30"}),
    ],
    "NexusSiteCertificateEnding": [
        Fires(
            "in 13 days",
            61,
            {SITE_CERTIFICATE: f"{13 * DAY}x90"},
            "the certificate of hospital-a ends in 12d 22h 59m 0s",
            SITE,
        ),
        Not("in 15 days", 61, {SITE_CERTIFICATE: f"{15 * DAY}x90"}),
        Not("in 2 days, which the other alert tells", 61, {SITE_CERTIFICATE: f"{2 * DAY}x90"}),
    ],
    "NexusSiteCertificateEndsInDays": [
        Fires(
            "in 2 days",
            61,
            {SITE_CERTIFICATE: f"{2 * DAY}x90"},
            "the certificate of hospital-a ends in 1d 22h 59m 0s",
            SITE,
        ),
        Not("in 4 days", 61, {SITE_CERTIFICATE: f"{4 * DAY}x90"}),
    ],
    "NexusSiteDiskLow": [
        Fires(
            "a fortieth is free",
            16,
            {SITE_FREE: "1x30", SITE_SIZE: "40x30"},
            "2.5% of the disk under the state of hospital-a is free",
            SITE,
        ),
        Not("a tenth is free", 16, {SITE_FREE: "1x30", SITE_SIZE: "10x30"}),
        Not("it was full for ten minutes", 16, {SITE_FREE: "0x10 4x30", SITE_SIZE: "40x40"}),
    ],
    "NexusSiteAuditChainBroken": [
        Fires("a line was changed", 7, {SITE_VALID: "1x5 0x10"}, "the audit log of hospital-a is not whole", SITE),
        Not("it is whole", 7, {SITE_VALID: "1x15"}),
    ],
    "NexusSiteAuditNotVerified": [
        Fires(
            "for four hours",
            245,
            SITE_AUDIT | {SITE_VERIFIED: "0" + LONG},
            "the audit log of hospital-a was not verified for hours",
            SITE,
        ),
        Fires(
            "it cannot be read",
            61,
            {SITE_BUILD: "1x90"},
            "the audit log of hospital-a was not verified for hours",
            SITE,
        ),
        Not("for two hours", 120, SITE_AUDIT | {SITE_VERIFIED: "0" + LONG}),
        Not("it is verified every hour", 300, SITE_AUDIT | {SITE_VERIFIED: "0+60" + LONG}),
    ],
    "NexusSiteSendsZeros": [
        Fires("once", 40, {ZEROS: "0x20 1x60"}, "training fails at hospital-a", {"site": "hospital-a"}),
        Not("two hours ago", 200, {ZEROS: "0x20 1x300"}),
    ],
    "NexusSiteRefuses": [
        Fires(
            "one a minute",
            20,
            {SITE_REFUSED: "0+1x30"},
            "hospital-a has refused 15 requests with unknown-base-model",
            {"site": "hospital-a", "code": "unknown-base-model"},
        ),
        Fires(
            "every ten minutes at last",
            240,
            {SITE_REFUSED: SELDOM},
            "hospital-a has refused 12 requests with unknown-base-model",
            {"site": "hospital-a", "code": "unknown-base-model"},
        ),
        Not("it has paused", 240, {SITE_PAUSED: SELDOM}),
        Not("seven, and no more", 20, {SITE_REFUSED: "0+1x7 7x30"}),
        Not("ten, half an hour ago", 45, {SITE_REFUSED: "0+1x9 10x60"}),
    ],
    "NexusSiteBackupOld": [
        Fires(
            "for nine days", 9 * 24 * 60, {SITE_SAVED: "0x13000"}, "hospital-a was not backed up for 9d 0h 0m 0s", SITE
        ),
        Not("for a week", 7 * 24 * 60, {SITE_SAVED: "0x12000"}),
        Not("it was, after nine", 9 * 24 * 60 + 10, {SITE_SAVED: f"0x12960 {9 * DAY}x20"}),
    ],
}
