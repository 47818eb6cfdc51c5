#!/bin/sh
# Installs NEXUS from the files beside this script and from nowhere else:
#
#     sudo sh install.sh server|client [--prefix DIR]
#
# The programs come into a folder of their own, and /opt/nexus points to it, so what was installed before is whole until
# the new one is, and stays: to go back, point /opt/nexus to it again.  With another --prefix the programs alone are
# installed: no units, no accounts, no root.
set -eu
umask 022 # the services' accounts have to read it

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

role='' prefix=/opt/nexus
while [ $# -gt 0 ]; do
  case $1 in
    server | client) role=$1 ;;
    --prefix) [ $# -gt 1 ] || fail "--prefix needs a folder"; shift; prefix=${1%/} ;;
    *) fail "unknown: $1; sudo sh install.sh server|client [--prefix DIR]" ;;
  esac
  shift
done
[ -n "$role" ] || fail "say what this machine is to be: sudo sh install.sh server|client"
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
cd "$(dirname "$0")"

sha256sum --check --strict --quiet SHA256SUMS ||
  fail "files of this bundle are not what was packed (see above); nothing was installed. Copy it here once more"
[ "$(find . ! -type d ! -path './SHA256SUMS*' | cut -c 3- | sort)" = "$(cut -c 67- SHA256SUMS | sort)" ] ||
  fail "there are files here that SHA256SUMS does not name; nothing was installed. Unpack the bundle into an empty folder"
# shellcheck source=/dev/null
. ./about.sh
[ "$(uname -m)" = "$MACHINE" ] || fail "this bundle is for $MACHINE, this machine is $(uname -m): make bundle MACHINE=$(uname -m)"
python='' found=''
for one in "python${PYTHON:?}" python3; do
  found=$("$one" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  [ "$found" != "$PYTHON" ] || { python=$one && break; }
done
[ -n "$python" ] || fail "this bundle is for Python $PYTHON, which is not here (python3 is ${found:-not there}): install it, or make bundle FOR_PYTHON=${found:-3.x}"
[ ! -e "$prefix" ] || [ -L "$prefix" ] || fail "$prefix is there, and not from a bundle; move it away or give another --prefix"
[ "$prefix" != /opt/nexus ] || [ "$(id -u)" = 0 ] || fail "/opt and systemd's folders are root's: sudo sh install.sh $role (or --prefix DIR)"

release=$prefix-$VERSION-$(sha256sum SHA256SUMS | cut -c 1-8)
roles=$({ cat "$prefix/roles" 2>/dev/null || true; echo "$role"; } | sort -u) # an update keeps both
if [ "$(cat "$release/roles" 2>/dev/null)" != "$roles" ]; then
  [ -e "$release/roles" ] || rm -rf "$release" # of an installation that was cut off
  [ -e "$release" ] || "$python" -I -m venv --without-pip "$release"
  for one in $roles; do
    echo "installing the $one into $release"
    PIP_CONFIG_FILE=/dev/null "$release/bin/python" "$(echo wheels/pip-*.whl)/pip" --isolated --disable-pip-version-check install \
      --quiet --no-index --find-links wheels --require-hashes --no-deps --only-binary :all: --requirement "$one.txt"
  done
  echo "$roles" >"$release/roles.new"
  sync -f "$release" # whole on the disk before anything points to it
  mv "$release/roles.new" "$release/roles"
fi
before=$(readlink "$prefix" || true)
ln -sfn "$release" "$prefix.new"
mv -T "$prefix.new" "$prefix"
sync -f "$prefix/"
echo "$prefix is $release"
[ -z "$before" ] || [ "$before" = "$release" ] || echo "the release before it stays in $before; rm -rf it when nobody wants to go back"
[ "$prefix" = /opt/nexus ] || exit 0

for one in $roles; do
  ln -sfn "/opt/nexus/bin/nexus-$one" "/usr/local/bin/nexus-$one"
done
if [ ! -d /run/systemd/system ]; then
  echo "this machine is not run by systemd: the units lie in $PWD/deploy/systemd"
  exit 0
fi
install -D -m 644 deploy/systemd/nexus.sysusers /etc/sysusers.d/nexus.conf
systemd-sysusers /etc/sysusers.d/nexus.conf
for one in $roles; do
  case $one in
    server) install -m 644 deploy/systemd/nexus-server.service /etc/systemd/system/ ;;
    client) install -m 644 deploy/systemd/nexus-client@.service deploy/systemd/nexus-serve@.service /etc/systemd/system/ ;;
  esac
done
systemctl daemon-reload
echo "units are installed, and nothing was started or restarted. Next: deploy/systemd/README.md; after an update:"
for one in $roles; do # all of them are new now, whichever was named
  case $one in
    server) echo "  systemctl restart nexus-server" ;;
    client) echo "  systemctl restart 'nexus-client@*' 'nexus-serve@*'" ;;
  esac
done
