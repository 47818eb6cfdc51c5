#!/bin/sh
# A site on a Jetson Orin, in a container: JetPack 6 has Python 3.10, and NEXUS needs 3.11.  README.md has the order.
#
#   nexus-jetson.sh build                  make the image on this board
#   nexus-jetson.sh start SITE DATA        the agent, also after a restart of the board
#   nexus-jetson.sh search SITE DATA       search and embeddings, http://127.0.0.1:8765
#   nexus-jetson.sh do SITE DATA COMMAND   a command of nexus-client: join, check, plan approve, status, bench ...
#   nexus-jetson.sh stop SITE
set -eu
DOCKER=${DOCKER:-docker} # or podman
IMAGE=${IMAGE:-nexus-client}
top=$(cd "$(dirname "$0")/../.." && pwd)

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

# Nothing but the site's own volumes can be written, and the agent cannot write its settings: "ro" or "rw" says which.
run() { # SITE DATA ro|rw OPTIONS-AND-COMMAND...
  site=$1 data=$2 settings=$3
  shift 3
  test -e "$data" || { echo "nexus-jetson.sh: $data does not exist" >&2; exit 1; }
  data=$(cd "$(dirname "$data")" && pwd)/$(basename "$data")
  # shellcheck disable=SC2086 # DOCKER may hold options
  $DOCKER run --init --read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 512 \
    --tmpfs /tmp:mode=1777,size=512m --network host \
    --volume "nexus-$site-settings:/etc/nexus:$settings" --volume "nexus-$site-state:/var/lib/nexus" \
    --volume "$data:/data:ro" "$@"
}

command=${1:-}
test $# -gt 0 && shift
case $command in
  build)
    test "$(uname -m)" = aarch64 || echo "note: this machine is $(uname -m), not a Jetson" >&2
    test -e "$top/deploy/docker/client.Dockerfile" || {
      echo "nexus-jetson.sh: an image is made from a clone of the repository, and $top is none; or load one that another" \
        "machine made: docker load < nexus-client.tar" >&2
      exit 1
    }
    # shellcheck disable=SC2086
    $DOCKER build --file "$top/deploy/docker/client.Dockerfile" --tag "$IMAGE" "$top"
    ;;
  start)
    test $# -eq 2 || usage
    run "$1" "$2" ro --detach --restart unless-stopped --name "nexus-$1" "$IMAGE" --site "$1"
    ;;
  search)
    test $# -eq 2 || usage
    run "$1" "$2" ro --detach --restart unless-stopped --name "nexus-$1-search" --no-healthcheck \
      "$IMAGE" --site "$1" serve
    ;;
  do)
    test $# -ge 3 || usage
    site=$1 data=$2
    shift 2
    if test -t 0; then tty=--tty; else tty=; fi
    run "$site" "$data" rw --rm --interactive ${tty:+"$tty"} "$IMAGE" --site "$site" "$@"
    ;;
  stop)
    test $# -eq 1 || usage
    for name in "nexus-$1" "nexus-$1-search"; do
      # shellcheck disable=SC2086
      if $DOCKER inspect "$name" > /dev/null 2>&1; then $DOCKER stop --time 30 "$name" && $DOCKER rm "$name"; fi
    done
    ;;
  *) usage ;;
esac
