"""A real systemd runs server, agent and search in their sandboxes; `check` says what the service cannot read."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from nexus_client.embed import default_base
from nexus_common.base_model import base_hash

from tests.ops.systemd_box import boot

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]
ODD = """/srv/50% of "it": a\\b, d'or  ü/rows 1.jsonl"""
SCRIPT = """
cd /opt/box
units=/opt/nexus/src/deploy/systemd
mkdir -p /etc/sysusers.d
cp $units/nexus.sysusers /etc/sysusers.d/nexus.conf
cp $units/*.service /etc/systemd/system/
systemd-sysusers
systemctl daemon-reload

nexus-server init > /dev/null
systemctl start nexus-server
nexus-server invite hospital-a --json > invite
mkdir -p "$(dirname "$(cat odd)")" /home/kim/docs /srv/others
cp rows "$(cat odd)"
printf '# Fever\\n\\nDrink a lot and rest for some days.\\n' > /home/kim/docs/fever.md
chmod 700 /home/kim
python3 -c 'import json; print(json.load(open("invite"))["line"])' |
  nexus-client join --data "$(cat odd)" --data /home/kim/docs
nexus-client unit --write
systemctl daemon-reload
systemctl start nexus-client@hospital-a
service=nexus-client@hospital-a
pid=$(systemctl show --value -p MainPID $service)
until nexus-client status --json | tee status | grep '"connected"'; do sleep 1; done
nexus-client --json check > check_good
nsenter -t $pid -m find /srv /home /root /mnt /media -type f > seen
cat /proc/$pid/status > limits
stat -c '%a %U %G' /etc/nexus/hospital-a /etc/nexus/hospital-a/policy.toml /var/lib/nexus/hospital-a \\
  /var/lib/nexus/hospital-a/agent.sock > rights
setpriv --reuid 65534 --regid 65534 --groups $(id -g nexus) /opt/nexus/bin/nexus-client status --json > by_member

chmod 600 /home/kim/docs/fever.md
nexus-client --json check > check_denied
rm -r /etc/systemd/system/$service.service.d
systemctl daemon-reload
systemctl restart $service
nexus-client --json check > check_hidden

mkdir -p /var/lib/nexus/hospital-a/onnx
cp -r graphs /var/lib/nexus/hospital-a/onnx/$(cat base)
chown -R nexus: /var/lib/nexus/hospital-a/onnx
chmod 644 /home/kim/docs/fever.md
(umask 077; echo a-token-of-some-length > /etc/nexus/hospital-a/serve.token)
install -D -m 644 $units/serve-token.conf /etc/systemd/system/nexus-serve@.service.d/token.conf
systemctl daemon-reload
systemctl start nexus-serve@hospital-a
python3 ask > unasked
until python3 ask token | tee found | grep box; do sleep 1; done  # the index is made first

systemctl stop nexus-serve@hospital-a nexus-client@hospital-a nexus-server
systemctl show -p Result,ExecMainStatus nexus-serve@hospital-a nexus-client@hospital-a nexus-server > ends
journalctl -o json --no-pager -u nexus-server -u 'nexus-client@*' -u 'nexus-serve@*' > journal
"""


ASK = """
import sys, urllib.error, urllib.request
head = {"Authorization": "Bearer a-token-of-some-length"} if len(sys.argv) > 1 else {}
asked = urllib.request.Request("http://127.0.0.1:8765/search?q=box+7&k=1", headers=head)
try:
    print(urllib.request.urlopen(asked).read().decode())
except urllib.error.HTTPError as problem:
    print(problem.code)
"""


@dataclass(frozen=True)
class Seen:
    """What the script left."""

    folder: Path

    def text(self, name: str) -> str:
        assert (self.folder / name).exists(), self.log
        return (self.folder / name).read_text()

    def data(self, name: str) -> dict[str, object]:
        text = self.text(name)
        assert text, self.log
        found: dict[str, object] = json.loads(text)
        return found

    def service(self, name: str) -> list[tuple[str, str, str | None]]:
        """The lines of a check about the service."""
        lines = self.data(name)["lines"]
        assert isinstance(lines, list)
        return [(line["state"], line["found"], line["remedy"]) for line in lines if line["name"] == "service"]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()[-20_000:]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> Seen:
    folder = tmp_path_factory.mktemp("box")
    (folder / "out").mkdir()
    (folder / "out/odd").write_text(ODD)
    (folder / "out/ask").write_text(ASK)
    (folder / "out/base").write_text(base_hash(default_base())[:16])
    shutil.copytree(graphs, folder / "out/graphs")
    rows = ({"query": f"where is box {i}", "passage": f"box {i} is kept in room {i}"} for i in range(30))
    (folder / "out/rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Seen(boot(folder, SCRIPT))


def test_the_agent_starts_as_its_account_and_connects(seen: Seen) -> None:
    assert seen.data("status")["connection"] == "connected"
    assert seen.service("check_good") == [("ok", "the agent, as nexus, can read all 2 paths of site.toml", None)]


def test_of_people_s_files_it_sees_the_site_s_data_and_nothing_else(seen: Seen) -> None:
    assert sorted(seen.text("seen").splitlines()) == ["/home/kim/docs/fever.md", ODD]


def test_it_has_no_capability_and_cannot_get_one(seen: Seen) -> None:
    limits = dict(line.split(":", 1) for line in seen.text("limits").splitlines())
    assert {int(limits[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (limits["NoNewPrivs"].strip(), limits["Seccomp"].strip()) == ("1", "2")


def test_settings_stay_root_s_and_the_socket_is_the_group_s(seen: Seen) -> None:
    assert seen.text("rights").splitlines() == [
        "750 root nexus", "640 root nexus", "750 nexus nexus", "660 nexus nexus"]  # fmt: skip
    assert seen.data("by_member")["running"] is True


def test_check_says_which_file_s_rights_are_missing(seen: Seen) -> None:
    ((state, found, remedy),) = seen.service("check_denied")
    assert state == "fault"
    assert found == "the agent, as nexus, cannot read /home/kim/docs: it ends at /home/kim/docs/fever.md"
    assert remedy is not None and remedy.startswith(
        "run `setfacl -R -m u:nexus:rX /home/kim/docs` (package acl); then `systemctl"
    )


def test_check_says_what_the_service_does_not_see_and_the_command_that_opens_it(seen: Seen) -> None:
    faults = seen.service("check_hidden")
    assert [found for _, found, _ in faults] == [f"the agent, as nexus, cannot read {path}" for path in
                                                (ODD, "/home/kim/docs")]  # fmt: skip
    assert all(remedy and "`nexus-client --site hospital-a unit --write`" in remedy for _, _, remedy in faults)


def test_search_answers_in_its_sandbox_to_whoever_has_the_credential(seen: Seen) -> None:
    assert seen.text("unasked") == "401\n"
    assert "box 7" in json.dumps(seen.data("found"))


def test_all_end_well(seen: Seen) -> None:
    assert seen.text("ends").split() == ["Result=success", "ExecMainStatus=0"] * 3


def test_the_journal_has_priorities_and_times_of_its_own(seen: Seen) -> None:
    lines = [json.loads(line) for line in seen.text("journal").splitlines()]
    said = {line["MESSAGE"]: line["PRIORITY"] for line in lines}
    assert said["hospital-a INFO agent of hospital-a is up, server 127.0.0.1:8443"] == "6"
    assert not [message for message in said if message.startswith(("<", "20"))]
    assert not [message for message, priority in said.items() if int(priority) < 4], "nothing went wrong"
