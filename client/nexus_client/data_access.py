"""Whether the agent can read the site's data: asked of the agent, for it may work under another account than the
administrator, and systemd shows it no folder of people's but those that were opened to it.

Nothing of a file's content is looked at; what travels is paths, over the site's own socket.
"""

import os
import pwd
from pathlib import Path

from nexus_client.agent_api import DataAccess, UnreadPath
from nexus_client.documents import documents_in
from nexus_client.site import SiteHome


def data_access(place: SiteHome) -> DataAccess:
    """What this process can read of what ``site.toml`` names now."""
    settings = place.settings()
    paths = settings.paths(place.settings_folder)
    base = place.settings_folder / settings.base_model if settings.base_model else None
    unread = tuple(found for path in paths if (found := _unread(path, base)) is not None)
    return DataAccess(account=_account(), paths=len(paths), unread=unread)


def _account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _unread(path: Path, base: Path | None) -> UnreadPath | None:
    try:
        for file in _files(path, base):
            with file.open("rb") as opened:
                opened.read(1)
    except OSError as problem:
        at = _where(Path(problem.filename or path))
        return UnreadPath(path=str(path), at=str(at), missing=isinstance(problem, FileNotFoundError))
    return None


def _files(path: Path, base: Path | None) -> list[Path]:
    """What is read of a path: a table, the documents of a folder, or the files of a base model."""
    if not path.is_dir():
        return [path]
    return [one for one in path.iterdir() if one.is_file()] if path == base else documents_in(path)


def _where(path: Path) -> Path:
    """Where reading a path ends: a folder above it that may not be entered, else itself."""
    return next((folder for folder in reversed(path.parents) if _closed(folder)), path)


def _closed(folder: Path) -> bool:
    return folder.is_dir() and not os.access(folder, os.X_OK, effective_ids=True)
