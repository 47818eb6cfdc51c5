"""The consortium's dashboard: is it healthy, who is missing, is it getting better, how much privacy is spent?"""

from panels import BLUE, GREEN, GREY, ORANGE, RED, Panel, board

DAY = 86_400
ROUNDS = "no round yet"
HEALTHY = [
    Panel(
        "Is the server up?",
        "Whether Prometheus reached the server at its last scrape. If not: alert NexusServerDown.",
        "none",
        {"{{instance}}": 'up{@, job="nexus-server"}'},
        kind="figures",
        empty="Prometheus has no job nexus-server",
        width=4,
        steps={None: RED, 1: GREEN},
        words={"0": ("DOWN", RED), "1": ("up", GREEN)},
    ),
    Panel(
        "What does the server do, and for how long?",
        "The phase of the run and the time since it began. Waiting and gathering wait for sites; idle is between runs, "
        "resting outside the plan's hours, faulting where a turn went wrong.",
        "dtdurations",
        {"{{phase}}": "time() - nexus_server_phase_since_timestamp_seconds{@}"},
        kind="figures",
        width=7,
    ),
    Panel(
        "Do its rounds meet faults?",
        "Whether the last turn of the rounds met a fault: it is tried again, and `nexus-server status` says what it "
        "is. For ten minutes: alert NexusServerFaults.",
        "none",
        {"{{project}}": "nexus_server_faulting{@}"},
        kind="figures",
        width=5,
        steps={None: GREEN, 1: RED},
        words={"0": ("no", GREEN), "1": ("YES", RED)},
    ),
    Panel(
        "How many alerts fire?",
        "Alerts of the rules in deploy/prometheus that fire now, where this Prometheus has loaded them. What to do "
        "about each stands in deploy/README.md.",
        "none",
        {"": 'count(ALERTS{alertname=~"Nexus.*", alertstate="firing"}) or vector(0)'},
        kind="figures",
        width=4,
        steps={None: GREEN, 1: RED},
    ),
    Panel(
        "Is the audit log whole?",
        "The server verifies its audit log every hour. BROKEN means that a line was changed, lost or moved: alert "
        "NexusAuditChainBroken.",
        "none",
        {"{{instance}}": "nexus_server_audit_chain_valid{@}"},
        kind="figures",
        empty="not verified yet, or not readable",
        width=4,
        steps={None: RED, 1: GREEN},
        words={"0": ("BROKEN", RED), "1": ("whole", GREEN)},
    ),
    Panel(
        "Which certificates end first?",
        "Time left of the five that end first. Sites get new ones by themselves when a third of a year is left, the CA "
        "when two of its ten years are.",
        "dtdurations",
        {"{{subject}}": "bottomk(5, nexus_server_certificate_expiry_timestamp_seconds{@} - time())"},
        kind="bars",
        width=6,
        steps={None: RED, 3 * DAY: ORANGE, 14 * DAY: GREEN},
    ),
    Panel(
        "When was the last backup?",
        "Time since the server was backed up, or where it never was since the log began, as the audit "
        "log tells it. After eight days: alert NexusBackupOld.",
        "dtdurations",
        {"{{instance}}": "time() - nexus_server_backed_up_timestamp_seconds{@}"},
        kind="figures",
        empty="the audit log was not verified yet",
        width=4,
        steps={None: GREEN, 2 * DAY: ORANGE, 8 * DAY: RED},
    ),
    Panel(
        "Is there room on the disk of the state folder?",
        "Free space of the disk that holds versions, keys and the audit log. Without any the server refuses to begin "
        "rounds; nothing is deleted by itself.",
        "percentunit",
        {"{{volume}}": "nexus_server_storage_free_bytes{@} / nexus_server_storage_size_bytes{@}"},
        width=4,
        steps={None: RED, 0.1: ORANGE, 0.2: GREEN},
        most=1,
    ),
    Panel(
        "What is refused?",
        "Refusals of sites and of the enrolment in the last hour, by code. The codes are those of common/PROTOCOL.md.",
        "short",
        {"{{code}}": "sum by (code) (increase(nexus_server_refusals_total{@}[1h])) > 0"},
        empty="nothing was refused",
        width=5,
    ),
    Panel(
        "How are requests answered?",
        "Answers a second at the port that sites dial, by HTTP status. Any 5xx is a fault of the server.",
        "reqps",
        {"{{code}}": "sum by (code) (rate(nexus_server_http_requests_total{@}[$__rate_interval]))"},
        empty="no request in this time",
        width=5,
    ),
]
MISSING = [
    Panel(
        "How many sites are missing?",
        "Enrolled sites without a connection now. Nobody need be missing for long: a run waits below its quorum.",
        "none",
        {"": 'sum(nexus_server_sites{@, state="enrolled"}) - sum(nexus_server_sites{@, state="connected"})'},
        kind="figures",
        empty="no site is enrolled",
        steps={None: GREEN, 1: ORANGE},
    ),
    Panel(
        "Of how many sites was the last sum?",
        "Sites in the last committed round. With three, two together can compute the third's update.",
        "none",
        {"": "nexus_server_round_participants{@}"},
        kind="figures",
        empty=ROUNDS,
        steps={None: RED, 3: ORANGE, 5: GREEN},
    ),
    Panel(
        "How long is the last round ago?",
        "Time since a version was committed. It grows between runs too.",
        "dtdurations",
        {"": "time() - nexus_server_last_commit_timestamp_seconds{@}"},
        kind="figures",
        empty=ROUNDS,
    ),
    Panel(
        "Who was not heard of for how long?",
        "The twenty sites that have been silent longest. The server tells this to five minutes and no finer, so that "
        "it does not show who takes part in a round.",
        "dtdurations",
        {"{{site}}": "topk(20, time() - nexus_server_site_last_seen_timestamp_seconds{@})"},
        kind="bars",
        empty="no site was heard of yet",
        steps={None: GREEN, 900: ORANGE, DAY: RED},
    ),
    Panel(
        "How long has a plan waited for approvals?",
        "Time since the plan was proposed that has waited longest. `nexus-server plan status` names the sites that "
        "have not approved it; after a week: alert NexusPlanWaits.",
        "dtdurations",
        {"": "time() - nexus_server_plan_waiting_since_timestamp_seconds{@}"},
        kind="figures",
        empty="no plan waits",
        steps={None: GREEN, 2 * DAY: ORANGE, 7 * DAY: RED},
    ),
    Panel(
        "How many approvals does it lack?",
        "Sites whose people have not approved that plan yet.",
        "none",
        {"": "nexus_server_plan_approvals_missing{@}"},
        kind="figures",
        empty="no plan waits",
    ),
    Panel(
        "When did the server do what?",
        "The phases of the run. A long waiting means that too few sites are ready; nothing is lost by it.",
        "none",
        {"{{phase}}": "count by (phase) (nexus_server_phase_since_timestamp_seconds{@})"},
        kind="states",
    ),
    Panel(
        "Where are sites lost?",
        "Sites that a round lost in the last hour, by where: in training or while their sum was made. Which sites is "
        "never told.",
        "short",
        {"in {{phase}}": "sum by (phase) (increase(nexus_server_dropouts_total{@}[1h]))"},
    ),
]
BETTER = [
    Panel(
        "Does the score rise?",
        "Mean score over what the sites of a cohort hold out, 0 to 1, of the version in use, the newest and the "
        "newest judged. Left out where fewer sites than the plan's min_cohort had one.",
        "percentunit",
        {"{{slot}}": "nexus_server_model_quality_ratio{@}"},
        empty=ROUNDS,
        most=1,
    ),
    Panel(
        "Does the loss fall?",
        "Mean loss over the same held-out rows, of the same versions.",
        "none",
        {"{{slot}}": "nexus_server_model_loss{@}"},
        empty=ROUNDS,
    ),
    Panel(
        "Which version is in use?",
        "Numbers of the run's versions. A version is judged by the round after it; one in use below the newest was "
        "gone back to.",
        "none",
        {"{{slot}}": "nexus_server_model_version{@}"},
        empty=ROUNDS,
    ),
    Panel(
        "How do rounds end?",
        "Rounds of the last hour, by outcome: a new version, nothing, or a version that its own cohort voted down.",
        "short",
        {"{{outcome}}": "sum by (outcome) (increase(nexus_server_rounds_total{@}[1h]))"},
    ),
    Panel(
        "How long do phases take?",
        "Time that 95 of 100 phases of the last hour stayed below. Training is as long as the slowest site's.",
        "s",
        {
            "{{phase}}": "histogram_quantile(0.95, sum by (phase, le) "
            "(rate(nexus_server_round_phase_duration_seconds_bucket{@}[1h])))"
        },
        empty="no round in the last hour",
    ),
    Panel(
        "How much goes to and from the sites?",
        "Content of messages, in bytes a second, without headers.",
        "Bps",
        {"{{direction}}": "sum by (direction) (rate(nexus_server_update_bytes_total{@}[$__rate_interval]))"},
    ),
    Panel(
        "What became of trials?",
        "Trials of dendrites or a salience head in all runs, and how often the new part or its control stayed.",
        "none",
        {"{{kind}}": "sum by (kind) (nexus_server_growth_events_total{@})"},
        kind="figures",
        width=12,
        empty="no trial yet",
    ),
    Panel(
        "How often was an earlier version gone back to?",
        "By the sites' votes or by a person, in the time shown; and sums that could not be opened, so that training "
        "went on beside them.",
        "none",
        {
            "rolled back": "sum(increase(nexus_server_rollbacks_total{@}[$__range]))",
            "sums lost": "sum(increase(nexus_server_spent_models_total{@}[$__range]))",
        },
        kind="figures",
        width=12,
        steps={None: GREEN, 1: ORANGE},
    ),
]
PRIVACY = [
    Panel(
        "How much of epsilon is spent?",
        "Epsilon of record-level differential privacy. This release cannot train with it, so there is no such metric "
        "and nothing is shown: epsilon is none, not 0.",
        "none",
        {"": "max(nexus_server_privacy_epsilon_spent{@})"},
        kind="figures",
        empty="no differential privacy in this plan",
        steps={None: GREY},
    ),
    Panel(
        "How many sums were opened?",
        "Rounds of all runs that were committed, and such whose sum voted a version down. Each shows the server the "
        "sum of its cohort's updates, and sums give something away about the text they were learnt from. A closing "
        "round sums figures alone, and is counted only where it votes a version down; a sum that came to nothing for "
        "another reason is not.",
        "none",
        {"": 'sum(nexus_server_rounds_total{@, outcome=~"committed|voted_down"})'},
        kind="figures",
        steps={None: BLUE},
    ),
    Panel(
        "How small were cohorts?",
        "The smallest committed round that Prometheus saw in the time shown. The fewer sites a sum has, the more it "
        "tells of each. A round that was followed by the next before Prometheus asked is not seen; "
        "`nexus-server models` has the cohorts of all.",
        "none",
        {"": "min(min_over_time(nexus_server_round_participants{@}[$__range]))"},
        kind="figures",
        empty=ROUNDS,
        steps={None: RED, 3: ORANGE, 5: GREEN},
    ),
]


def consortium() -> str:
    """Its JSON."""
    return board(
        "NEXUS: the consortium",
        "nexus-consortium",
        "Is it healthy, who is missing, is it getting better, how much privacy is spent? From nexus-server's metrics.",
        ("instance", "Server", "nexus_server_build_info"),
        {
            "Is it healthy?": HEALTHY,
            "Who is missing?": MISSING,
            "Is it getting better?": BETTER,
            "How much privacy is spent?": PRIVACY,
        },
    )
