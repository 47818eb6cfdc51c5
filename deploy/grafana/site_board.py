"""A site's own dashboard, of what its agent exposes: for the site alone, for step times tell something of its text."""

from panels import GREEN, ORANGE, RED, Panel, board

DAY = 86_400
HEALTHY = [
    Panel(
        "Is the agent up?",
        "Whether Prometheus reached the agent at its last scrape. If not: alert NexusAgentDown.",
        "none",
        {"{{site}}": 'up{@, job="nexus-client"}'},
        kind="figures",
        empty="Prometheus has no job nexus-client",
        width=4,
        steps={None: RED, 1: GREEN},
        words={"0": ("DOWN", RED), "1": ("up", GREEN)},
    ),
    Panel(
        "When did the server last answer?",
        "Time since the consortium's server answered the agent. The agent tries again by itself, at least every half "
        "minute.",
        "dtdurations",
        {"{{site}}": "time() - nexus_client_server_last_contact_timestamp_seconds{@}"},
        kind="figures",
        empty="never since the agent's start",
        width=5,
        steps={None: GREEN, 300: ORANGE, 900: RED},
    ),
    Panel(
        "Is the audit log whole?",
        "The agent verifies its audit log every hour. BROKEN means that a line was changed, lost or moved: alert "
        "NexusSiteAuditChainBroken.",
        "none",
        {"{{site}}": "nexus_client_audit_chain_valid{@}"},
        kind="figures",
        empty="not verified yet, or not readable",
        width=5,
        steps={None: RED, 1: GREEN},
        words={"0": ("BROKEN", RED), "1": ("whole", GREEN)},
    ),
    Panel(
        "How long is the certificate good for?",
        "A new one comes by itself when a third of its year is left, if the server is reached by then.",
        "dtdurations",
        {"{{site}}": "nexus_client_certificate_expiry_timestamp_seconds{@} - time()"},
        kind="figures",
        width=5,
        steps={None: RED, 3 * DAY: ORANGE, 14 * DAY: GREEN},
    ),
    Panel(
        "When was the last backup?",
        "Time since this site was backed up, or where it never was since the log began, as the audit "
        "log tells it. After eight days: alert NexusSiteBackupOld.",
        "dtdurations",
        {"{{site}}": "time() - nexus_client_backed_up_timestamp_seconds{@}"},
        kind="figures",
        empty="the audit log was not verified yet",
        width=5,
        steps={None: GREEN, 2 * DAY: ORANGE, 8 * DAY: RED},
    ),
    Panel(
        "Is the connection stable?",
        "Times in the last hour that the server could not be reached or the connection broke. A change of policy.toml "
        "may add one.",
        "short",
        {"{{site}}": "increase(nexus_client_connection_faults_total{@}[1h])"},
    ),
    Panel(
        "Is this machine's clock right?",
        "How far it is ahead of the server's; the agent allows for that in what it signs. From a minute on, set it.",
        "s",
        {"{{site}}": "abs(nexus_client_clock_ahead_seconds{@})"},
        empty="the server has not answered since the agent's start",
        steps={None: GREEN, 60: RED},
    ),
    Panel(
        "What does this site refuse?",
        "Refusals in the last hour, by code. The audit log has the reason of each, the server is told the code alone.",
        "short",
        {"{{site}}: {{code}}": "sum by (site, code) (increase(nexus_client_refusals_total{@}[1h])) > 0"},
        empty="nothing was refused",
    ),
]
PART = [
    Panel(
        "Does it take part in rounds?",
        "Rounds of the last hour that the server asked for, by what became of them here. Zeros: training failed here, "
        "and the log says why.",
        "short",
        {"{{site}}: {{outcome}}": "sum by (site, outcome) (increase(nexus_client_rounds_total{@}[1h]))"},
    ),
    Panel(
        "How long does its part take?",
        "Time that 95 of 100 of its parts in rounds of the last hour stayed below, by what it did.",
        "s",
        {
            "{{site}}: {{phase}}": "histogram_quantile(0.95, sum by (site, phase, le) "
            "(rate(nexus_client_round_phase_duration_seconds_bucket{@}[1h])))"
        },
        empty="no round in the last hour",
    ),
    Panel(
        "How fast does it train?",
        "Steps of training a second, while rounds go on.",
        "ops",
        {"{{site}}": "rate(nexus_client_training_steps_total{@}[$__rate_interval])"},
    ),
    Panel(
        "How long does a step take?",
        "The median and the 95th percentile of the last hour's steps.",
        "s",
        {
            f"{{{{site}}}}: {told}": f"histogram_quantile({part}, sum by (site, le) "
            "(rate(nexus_client_training_step_duration_seconds_bucket{@}[1h])))"
            for told, part in (("median", 0.5), ("95 of 100", 0.95))
        },
        empty="no training in the last hour",
        width=12,
    ),
    Panel(
        "How much is sent and received?",
        "Content of messages to and from the server, in bytes a second. The audit log has each with its purpose.",
        "Bps",
        {
            "{{site}}: {{direction}}": "sum by (site, direction) "
            "(rate(nexus_client_update_bytes_total{@}[$__rate_interval]))"
        },
        width=12,
    ),
]
COSTS = [
    Panel(
        "How much memory does the agent use?",
        "Its resident memory, with the base model and the text that it has loaded.",
        "bytes",
        {"{{site}}": "nexus_client_memory_resident_bytes{@}"},
        width=6,
    ),
    Panel(
        "How much memory of the GPU is used?",
        "By whichever process, on the first GPU that the agent uses.",
        "bytes",
        {"{{site}}": "nexus_client_gpu_memory_used_bytes{@}"},
        empty="the agent uses no GPU",
        width=6,
    ),
    Panel(
        "Is there room on the disk of the state folder?",
        "Free space of the disk that holds the cache of frozen states, the search index and the audit log. Without any "
        "the agent refuses rounds: alert NexusSiteDiskLow.",
        "percentunit",
        {"{{site}}": "nexus_client_storage_free_bytes{@} / nexus_client_storage_size_bytes{@}"},
        width=6,
        steps={None: RED, 0.05: ORANGE, 0.1: GREEN},
        most=1,
    ),
    Panel(
        "How warm is the machine?",
        "Thermal zones of Linux, by the driver's name.",
        "celsius",
        {"{{site}}: {{zone}}": "nexus_client_temperature_celsius{@}"},
        empty="this machine has no thermal zone",
        width=6,
    ),
    Panel(
        "How much power does it draw?",
        "Power sensors of Linux, by the driver's name.",
        "watt",
        {"{{site}}: {{rail}}": "nexus_client_power_watts{@}"},
        empty="this machine has no power sensor",
        width=6,
    ),
]


def site() -> str:
    """Its JSON."""
    return board(
        "NEXUS: a site",
        "nexus-site",
        "Is the agent healthy, does it take part, what does it cost this machine? From nexus-client's metrics.",
        ("site", "Site", "nexus_client_build_info"),
        {
            "Is the agent healthy?": HEALTHY,
            "Does it take part?": PART,
            "What does it cost this machine?": COSTS,
        },
    )
