"""The state of a run in words."""

from nexus_common.cli import moment

from nexus_server import admin_api as admin


def sentence(status: admin.Status) -> str:
    """The run's state in one line."""
    if status.run is None:
        return "no run yet: nexus-server train plan.toml"
    head = f"run {status.run}: {status.state}, {status.round} of {status.rounds} rounds done"
    missing = ", ".join(status.missing)
    if status.state not in ("running", "stopping"):
        return head
    if status.phase == "waiting":
        return (
            f"{head}; waiting for {missing} since {moment(status.phase_since)} "
            f"(at least {status.min_cohort} sites are needed); nothing is lost"
        )
    if status.phase == "gathering":
        return f"{head}; enough sites are ready, giving {missing} a moment to come"
    return head + (
        f"; last round with {', '.join(status.cohort)}, {status.round_seconds[-1]:.1f} s"
        if status.round_seconds and status.cohort
        else ""
    )
