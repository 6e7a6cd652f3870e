#!/usr/bin/env bash
# The tests at one end of the versions that pyproject.toml allows, in an environment of their own.
#
#   tools/test_versions.sh newest|oldest [PYTEST_ARGUMENT ...]
#
# newest: the newest of every package. oldest: the lower bound of every package that has one.
# Without arguments all tests run. The environment is kept in .versions/, and brought up to date.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
end=${1:-}
if [[ $end != newest && $end != oldest ]]; then
  echo "tools/test_versions.sh: the first argument is '$end': newest or oldest is needed" >&2
  exit 2
fi
shift
# shellcheck source=tools/find_uv.sh
source "$root/tools/find_uv.sh"
folder=$root/.versions/$end
python=$folder/venv/bin/python
mkdir -p "$folder"
[[ -x $python ]] || "$uv" venv --quiet "$folder/venv"

# Each bound "name>=version" as "name==version".
: >"$folder/constraints.txt"
if [[ $end == oldest ]]; then
  sed -nE 's/^  "([a-z-]+)>=([0-9.]+)"?.*/\1==\2/p' pyproject.toml >"$folder/constraints.txt"
fi
# From elsewhere, since in this folder uv takes the project's own constraints: the locked versions.
(cd "$folder" && "$uv" pip install --quiet --upgrade --python "$python" \
  --constraints constraints.txt --group "$root/pyproject.toml:dev" --editable "$root")
"$uv" pip freeze --quiet --python "$python" |
  grep -E '^(torch|transformers|tokenizers|numpy|sentencepiece|nvidia-modelopt|megatron-core)==' |
  tee "$folder/versions.txt"

if (($#)); then
  exec "$python" -m pytest "$@"
fi
exec "$python" -m pytest -n 2 --dist loadfile --ignore tests/te
