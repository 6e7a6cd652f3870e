#!/usr/bin/env bash
# Prove that the folder of tools/wheelhouse.sh is enough: install from it and run the fast tests
# where there is no network, no uv, no cache and no configuration.
#
#   tools/wheelhouse_check.sh           with a new folder
#   tools/wheelhouse_check.sh WHEELS    with a folder that is there
#
# What is tested is the last commit, in a clone. Everything is deleted at the end.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Not a shim, which asks a home folder what it stands for.
python=$(python3 -c 'import os, sys; print(os.path.dirname(os.path.realpath(sys.executable)))')
scratch=$(mktemp -d "${TMPDIR:-/tmp}/wheelhouse-check.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch"/{home,tmp}

report() { echo "wheelhouse-check: $*, ${SECONDS} s after the start"; }

wheels=${1:-}
if [[ -z $wheels ]]; then
  wheels=$scratch/wheels
  "$root/tools/wheelhouse.sh" "$wheels"
fi
wheels=$(cd "$wheels" && pwd)
report "$(du -sh "$wheels" | cut -f1) of wheels"
if [[ -n $(git -C "$root" status --porcelain) ]]; then
  echo "wheelhouse-check: changes that are not committed are not tested" >&2
fi
git clone --quiet "$root" "$scratch/checkout"

# A namespace with the loopback alone; without one, addresses that lead nowhere are all there is.
loopback='ip link set lo up && exec "$@"'
if unshare --net sh -c "$loopback" sh true 2>/dev/null; then
  off=(unshare --net sh -c "$loopback" sh)
elif unshare --map-root-user --net sh -c "$loopback" sh true 2>/dev/null; then
  off=(unshare --map-root-user --net sh -c "$loopback" sh)
else
  off=()
  echo "wheelhouse-check: unshare --net is refused here: only the index is switched off" >&2
fi
nowhere=http://127.0.0.1:9/simple
off+=(env -i "PATH=$python:/usr/bin:/bin:/usr/sbin:/sbin" "HOME=$scratch/home" "TMPDIR=$scratch/tmp"
  LANG=C.UTF-8 OMP_NUM_THREADS=1 PIP_CONFIG_FILE=/dev/null "PIP_INDEX_URL=$nowhere" UV_NO_CONFIG=1
  "UV_DEFAULT_INDEX=$nowhere" "UV_CACHE_DIR=$scratch/home/uv-cache")

network=$("${off[@]}" python3 - <<'PYTHON'
import socket
try:
    socket.create_connection(("pypi.org", 443), timeout=10).close()
    print("reachable")
except OSError as error:
    print(f"off ({error})")
PYTHON
)
report "network $network"
"${off[@]}" make -C "$scratch/checkout" --no-print-directory "WHEELS=$wheels" .venv/bin/uv
report "installed, $(du -sh "$scratch/checkout/.venv" | cut -f1)"
"${off[@]}" make -C "$scratch/checkout" --no-print-directory "WHEELS=$wheels" test-fast
report "tests have passed"
report "caches and configuration it made: $(du -sh "$scratch/home" | cut -f1)"
