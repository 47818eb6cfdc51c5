"""The state of a run in words."""

from nexus_common.cli import moment

from nexus_server import admin_api as admin


def sentence(status: admin.Status) -> str:
    """The run's state in one line, and what waits for approvals in another."""
    waits = (
        f"plan {status.wanted} waits for the approval of {', '.join(status.approvals_missing) or 'nobody any more'} "
        "(there: nexus-client plan show, plan approve)"
    )
    if status.run is None:
        return waits if status.wanted else "no run yet: nexus-server plan new, plan propose, train"
    return _run(status) + (f"\n{waits}" if status.wanted else "")


def _run(status: admin.Status) -> str:
    head = f"run {status.run}: {status.state}, {status.round} of {status.rounds} rounds done"
    missing = ", ".join(status.missing)
    if status.state not in ("running", "stopping"):
        return head
    if status.phase == "waiting":
        spare = "nobody can be spared" if status.quorum == status.sites else f"{status.quorum} are needed"
        return (
            f"{head}; waiting for {missing} since {moment(status.phase_since)}; with {status.sites} sites {spare}; "
            "nothing is lost"
        )
    if status.phase == "resting":
        return f"{head}; resting until the plan's hours begin"
    if status.phase == "gathering":
        return f"{head}; enough sites are ready, giving {missing} a moment to come"
    return head + (
        f"; last round with {', '.join(status.cohort)}, {status.round_seconds[-1]:.1f} s"
        if status.round_seconds and status.cohort
        else ""
    )
