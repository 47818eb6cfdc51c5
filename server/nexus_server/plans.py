"""What the database says of plans: which are proposed, and where each site stands on them."""

import time

from nexus_common import wire
from nexus_common.plan import Plan
from pydantic import ValidationError

from nexus_server.database import Database, insert
from nexus_server.records import Proposal, Standing


class Plans(Database):
    """Plans and what sites said to them."""

    def propose(self, plan: Plan, *, wanted: bool = False) -> None:
        """Put a plan before its sites; an older proposal of the same name that became no run is dropped."""
        with self.transaction() as db:
            db.execute("DELETE FROM plans WHERE name = ? AND hash <> ?", (plan.name, plan.hash))
            db.execute(
                "INSERT INTO plans VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET wanted = max(wanted, excluded.wanted)",
                (plan.hash, plan.name, plan.canonical, int(wanted), time.time()),
            )

    def proposals(self) -> list[Proposal]:
        """Plans that have become no run yet, oldest first."""
        rows = self.rows(
            "SELECT plan, wanted, proposed FROM plans WHERE name NOT IN (SELECT name FROM runs) "
            "ORDER BY proposed, rowid"
        )
        return [Proposal(Plan.model_validate_json(row["plan"]), bool(row["wanted"]), row["proposed"]) for row in rows]

    def renew_plans(self) -> tuple[list[str], list[str]]:
        """Give proposals that another release wrote the text, and so the hash, that they have in this one; their names.

        Nobody has approved that text yet, or could: it counts as proposed from now on.  What has become a run is left
        as it was approved (``Runs.is_outdated``).
        Proposals that this release cannot read are dropped; their names too.
        """
        renewed, dropped = list[str](), list[str]()
        rows = self.rows("SELECT name, hash, plan FROM plans WHERE name NOT IN (SELECT name FROM runs)")
        with self.transaction() as db:
            for name, old, text in (row.values() for row in rows):
                try:
                    plan = Plan.model_validate_json(text)
                except ValidationError:
                    db.execute("DELETE FROM plans WHERE hash = ?", (old,))
                    dropped.append(name)
                    continue
                if plan.hash != bytes(old):
                    db.execute("DELETE FROM standings WHERE plan = ?", (old,))
                    change = "UPDATE plans SET hash = ?, plan = ?, proposed = ? WHERE hash = ?"
                    db.execute(change, (plan.hash, plan.canonical, time.time(), old))
                    renewed.append(name)
        return renewed, dropped

    def plan(self, name: str) -> Plan | None:
        """A plan by name, whatever became of it."""
        rows = self.rows("SELECT plan FROM plans WHERE name = ?", name)
        return Plan.model_validate_json(rows[0]["plan"]) if rows else None

    def unwant(self, plan: Plan) -> None:
        """A plan is proposed still, but nobody waits for it."""
        with self.transaction() as db:
            db.execute("UPDATE plans SET wanted = 0 WHERE hash = ?", (plan.hash,))

    def forget_proposal(self, name: str) -> None:
        """Take back a plan that has become no run."""
        with self.transaction() as db:
            db.execute("DELETE FROM plans WHERE name = ? AND name NOT IN (SELECT name FROM runs)", (name,))

    def note_standing(self, plan: Plan, site: str, standing: wire.Standing) -> bool:
        """Keep a site's signed notice; whether it says something new."""
        new = {"state": standing.state, "code": standing.code}
        old = [row for row in self.standings(plan) if row.site == site]
        if old and {"state": old[0].state, "code": old[0].code} == new:
            return False
        with self.transaction() as db:
            if not db.execute("SELECT 1 FROM plans WHERE hash = ?", (plan.hash,)).fetchone():
                return False  # taken back while the site was asked
            db.execute("DELETE FROM standings WHERE plan = ? AND site = ?", (plan.hash, site))
            insert(
                db,
                "standings",
                {"plan": plan.hash, "site": site, "signature": standing.signature, "at": time.time(), **new},
            )
        return True

    def standings(self, plan: Plan) -> list[Standing]:
        """What the sites have said to a plan, by name."""
        rows = self.rows("SELECT site, state, code, at FROM standings WHERE plan = ? ORDER BY site", plan.hash)
        return [Standing(**row) for row in rows]
