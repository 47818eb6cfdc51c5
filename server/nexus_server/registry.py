"""The server's memory: sites and their invitations here, runs and plans in the modules of their names."""

import sqlite3
import time
from dataclasses import asdict

from nexus_server.database import insert
from nexus_server.plans import Plans
from nexus_server.records import Invitation, SiteRow
from nexus_server.runs import Runs


class Registry(Runs, Plans):
    """All that the server remembers, in one database."""

    def sites(self) -> list[SiteRow]:
        """All enrolled sites, by name."""
        return [SiteRow(**row) for row in self.rows("SELECT * FROM sites ORDER BY name")]

    def invite(self, invitation: Invitation) -> None:
        """Open an invitation; an older one for the same site ends."""
        with self.transaction() as db:
            db.execute("DELETE FROM invitations WHERE site = ?", (invitation.site,))
            insert(db, "invitations", asdict(invitation))

    def invitation(self, secret_hash: bytes) -> Invitation | None:
        """The invitation with this secret."""
        rows = self.rows("SELECT * FROM invitations WHERE secret_hash = ?", secret_hash)
        return Invitation(**rows[0]) if rows else None

    def invitations(self) -> list[Invitation]:
        """All invitations."""
        return [Invitation(**row) for row in self.rows("SELECT * FROM invitations")]

    def open_invitations(self) -> list[str]:
        """Sites that may come to the enrolment listener: invited, in time, and not seen at the main port since."""
        rows = self.rows(
            "SELECT i.site FROM invitations i LEFT JOIN sites s ON s.name = i.site WHERE i.expires > ? "
            "AND (i.used IS NULL OR s.last_seen IS NULL OR s.last_seen < i.used) ORDER BY i.site",
            time.time(),
        )
        return [row["site"] for row in rows]

    def end_invitations(self) -> list[str]:
        """End all of them; the sites whose listener was open."""
        ended = self.open_invitations()
        with self.transaction() as db:
            db.execute("DELETE FROM invitations")
        return ended

    def enrol(self, row: SiteRow, secret_hash: bytes, request_hash: bytes) -> None:
        """Use the invitation and enrol the site, in one step."""
        with self.transaction() as db:
            _use(db, secret_hash, request_hash)
            insert(db, "sites", asdict(row))

    def renew(self, row: SiteRow) -> bool:
        """Give an enrolled site another certificate; False where it has other keys by now, or was revoked."""
        with self.transaction() as db:
            change = "UPDATE sites SET certificate = ?, expires = ? WHERE name = ? AND key_hash = ? AND identity = ?"
            values = (row.certificate, row.expires, row.name, row.key_hash, row.identity)
            return bool(db.execute(change, values).rowcount)

    def certify(self, row: SiteRow, secret_hash: bytes, request_hash: bytes) -> None:
        """Use the invitation and give an enrolled site another certificate, perhaps for new keys, in one step."""
        with self.transaction() as db:
            _use(db, secret_hash, request_hash)
            change = "UPDATE sites SET key_hash = ?, public_pem = ?, identity = ?, certificate = ?, expires = ?"
            values = (row.key_hash, row.public_pem, row.identity, row.certificate, row.expires, row.name)
            db.execute(f"{change} WHERE name = ?", values)

    def revoke(self, site: str) -> bool:
        """Forget a site and its invitation; False where none of that name is enrolled."""
        with self.transaction() as db:
            db.execute("DELETE FROM invitations WHERE site = ?", (site,))
            return bool(db.execute("DELETE FROM sites WHERE name = ?", (site,)).rowcount)

    def note_seen(self, seen: dict[str, float]) -> None:
        """Store when sites were last heard of."""
        with self.transaction() as db:
            db.executemany("UPDATE sites SET last_seen = ? WHERE name = ?", [(at, site) for site, at in seen.items()])

    def note_readiness(self, site: str, readiness: str | None) -> None:
        """Store ``preparing`` or ``ready``."""
        with self.transaction() as db:
            db.execute("UPDATE sites SET readiness = ? WHERE name = ?", (readiness, site))


def _use(db: sqlite3.Connection, secret_hash: bytes, request_hash: bytes) -> None:
    change = "UPDATE invitations SET request_hash = ?, used = ? WHERE secret_hash = ?"
    db.execute(change, (request_hash, time.time(), secret_hash))
