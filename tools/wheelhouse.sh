#!/usr/bin/env bash
# Collect in one folder everything that a machine without a network needs: docs/offline.md.
#
#   tools/wheelhouse.sh FOLDER            the project, its extras but `gpu`, and what its tests need
#   tools/wheelhouse.sh FOLDER --no-dev   without what tests need
#   tools/wheelhouse.sh FOLDER --gpu      with Transformer Engine
#
# Stopped, it goes on when it is started again. It runs with the group `wheelhouse` of uv.lock, in an
# environment of its own: nothing is installed into the project's.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv=$(command -v uv || true)
# A name on PATH may be a shim without a program behind it.
if ! "${uv:-false}" --version >/dev/null 2>&1; then
  uv=$root/.uv/bin/uv
  [[ -x $uv ]] || make -C "$root" --no-print-directory .uv/bin/uv >&2
fi
if ! "$uv" python find --project "$root" --no-python-downloads >/dev/null 2>&1; then
  echo "tools/wheelhouse.sh: no Python $(<"$root/.python-version") here, and none is downloaded. Add a" \
    "python$(<"$root/.python-version") to PATH, for example by a module of the cluster" >&2
  exit 1
fi
PYTHONPATH=$root exec "$uv" run --project "$root" --frozen --isolated --only-group wheelhouse \
  --no-python-downloads \
  python "$root/tools/wheelhouse.py" "$@"
