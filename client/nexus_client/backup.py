"""A site in one file: identity, certificates, settings, policy, plans, adapters and audit log; and made again from it.

Not the protocol's record of what was opened: an old one would let a server open a sum twice.  So what is restored has
no approved plan, and serves only those that its people approve from then on.  Caches and indexes are made again.
"""

import os
import re
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from nexus_common import __version__, archive, audit
from nexus_common.account import act_as_owner, as_owner
from nexus_common.archive import Archive, Contents
from nexus_common.audit import AuditLog
from nexus_common.backup_age import BACKED_UP, RESTORED
from nexus_common.config import SITE_PATTERN
from nexus_common.disk import make_above, sync_folder, write_durably
from nexus_common.errors import NexusError

from nexus_client.consent import Consent
from nexus_client.policy import read_policy, rewrite_policy
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome

KIND: Final = "nexus-client"
LAYOUT: Final = 1  # of the file; a program knows those up to its own
TRIES: Final = 5
_STATE: Final = ("federated.safetensors", "alone.safetensors", "alone.json", "rounds.jsonl", "evaluation.json")


def back_up(place: SiteHome, file: Path) -> tuple[int, str, str]:
    """Write a site into ``file``, also beside its running agent; how many files, its SHA-256, the audit log's new head.

    Root reads as the account that the state folder belongs to, which could lay links in it.
    """
    with archive.new_file(file.absolute(), place.state) as out, as_owner(place.state):
        place.settings()
        read_policy(place.policy_file)  # what cannot be read now could not be restored with its approvals ended
        with tempfile.TemporaryDirectory(dir=place.state, prefix=".backup-") as folder:
            beside = Path(folder)
            for _ in range(TRIES):
                shutil.rmtree(beside)
                beside.mkdir(mode=0o700)
                try:
                    _copy(place, beside)
                    break
                except FileNotFoundError as problem:  # the agent has replaced a model meanwhile
                    missing = problem.filename
            else:
                raise NexusError(f"{missing} is missing, and is part of this site; `nexus-client check` may say more")
            sources = {one.relative_to(beside).as_posix(): one for one in sorted(beside.rglob("*")) if one.is_file()}
            contents = Contents(
                kind=KIND, of=place.site, made=time.time(), version=__version__, schema_number=LAYOUT, files={}
            )
            digest = archive.pack(out, contents, sources)
    with as_owner(place.state):
        head = AuditLog(place.audit_file).append(BACKED_UP, files=len(sources), sha256=digest)
    return len(sources), digest, head


def _copy(place: SiteHome, target: Path) -> None:
    """Each file is whole, for it is only ever replaced; the list of models comes before the models that it names."""
    wanted = {f"settings/{one.name}": one for one in (place.settings_file, place.policy_file)}
    wanted |= {f"keys/{one.name}": one for one in place.keys.glob("[!.]*") if one.suffix in (".key", ".crt")}
    wanted |= {f"plans/{one.name}": one for one in (place.state / "plans").glob("[!.]*.json")}
    wanted |= {name: place.state / name for name in _STATE if (place.state / name).exists()}
    shelf = Shelf(place)
    if shelf.file.exists():
        models = shelf.models  # read once: the agent may replace it meanwhile
        (target / "models").mkdir()
        (target / "models" / shelf.file.name).write_text(models.model_dump_json())
        wanted |= {f"models/{one.name}.safetensors": shelf.file_of(one.name) for one in models.held}
    for name, source in wanted.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target / name)
    audit.copy(place.audit_file, target / "audit.jsonl")


def restore(file: Path, home: Path | None, site: str | None) -> tuple[SiteHome, Contents, list[str]]:
    """Make a site from a backup where there is none; with the names of the plans whose approval ended."""
    opened = Archive.read(file, KIND)
    with closing(opened.file):
        contents = opened.contents
        if contents.schema_number > LAYOUT:
            newer = f"{file} was made by a newer nexus-client ({contents.version[:20]})"
            raise NexusError(f"{newer}; install that one first")
        if not re.fullmatch(SITE_PATTERN, contents.of) or site not in (None, contents.of):
            raise NexusError(f"{file} is a backup of {contents.of[:63]!r}, not of {site or 'a site'}")
        place = SiteHome.of(home, contents.of)
        _require_none(place)
        make_above(place.settings_folder)
        place.settings_folder.mkdir(mode=0o700, exist_ok=True)
        make_above(place.state)
        act_as_owner(place.state.parent)
        staging = place.state.with_name(f".{place.state.name}.restoring")
        if staging.exists():
            shutil.rmtree(staging)  # of an attempt that was cut short
        staging.mkdir(mode=0o700)
        try:
            opened.unpack(staging)
            ended = _end_approvals(staging, contents)
            _put(staging, place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # gone where all went well
    return place, contents, ended


def _require_none(place: SiteHome) -> None:
    there = [place.settings_file] if place.settings_file.exists() else []
    there += [place.state] if place.state.is_symlink() or (place.state.exists() and any(place.state.iterdir())) else []
    if there:
        raise NexusError(
            f"{place.site} is here already ({there[0]}), and restoring takes nothing's place; stop its agent, move its "
            "folders aside and try again, or give --home another folder"
        )


def _end_approvals(staging: Path, contents: Contents) -> list[str]:
    """In what was unpacked: no plan is approved, and the log says so; names of those that were."""
    policy, needed = staging / "settings" / "policy.toml", ("settings/site.toml", "settings/policy.toml", "audit.jsonl")
    if missing := [name for name in (*needed, "keys/identity.key", "keys/transport.key") if name not in contents.files]:
        raise NexusError(f"the backup lacks {', '.join(missing)}; take another")
    place = SiteHome(contents.of, policy.parent, staging)
    place.settings()
    approved = read_policy(policy).approved_plans
    names = {plan.hash.hex(): plan.name for plan in Consent(place).proposals()}
    rewrite_policy(policy, lambda _: {"approved_plans": []})
    AuditLog(place.audit_file).append(RESTORED, made=int(contents.made), approvals_ended=list(approved))
    return [names.get(one, one) for one in approved]


def _put(staging: Path, place: SiteHome) -> None:
    """Everything to its place; ``site.toml`` last, for it says that all of it is there."""
    settings = {name: (staging / "settings" / name).read_bytes() for name in ("policy.toml", "site.toml")}
    shutil.rmtree(staging / "settings")
    owner = place.state.stat() if place.state.exists() else None
    if owner is not None and os.geteuid() == 0:  # below a folder of root's, where nobody else can lay links
        for path in (staging, *staging.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    write_durably(place.policy_file, settings["policy.toml"])
    staging.rename(place.state)
    sync_folder(place.state.parent)
    write_durably(place.settings_file, settings["site.toml"])
