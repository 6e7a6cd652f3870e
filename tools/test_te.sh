#!/usr/bin/env bash
# The tests of Transformer Engine's layers, on a machine without a GPU, in an environment of their own.
#
#   tools/test_te.sh [WHEEL]
#
# WHEEL is transformer-engine-torch for this Python and torch. Without one it is built from its
# source package, once: ten minutes or more on two cores. Environment and wheel are kept in .te/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=tools/find_uv.sh
source "$root/tools/find_uv.sh"
package=transformer-engine-torch
version=$(sed -n 's/^gpu = .*==\([0-9.]*\).*/\1/p' pyproject.toml)
export UV_PROJECT_ENVIRONMENT=$root/.te/venv
python=$UV_PROJECT_ENVIRONMENT/bin/python

wheel=${1:-}
if [[ -n $wheel && ! -f $wheel ]]; then
  echo "tools/test_te.sh: TE_WHEEL: $wheel is not there" >&2
  exit 2
fi
if [[ -n $wheel && $(basename "$wheel") != transformer_engine_torch-"$version"-* ]]; then
  echo "tools/test_te.sh: TE_WHEEL: $wheel is not $package $version, which pyproject.toml names" >&2
  exit 2
fi

# Its wheel is not on PyPI, and a build there would ask for CUDA's compiler.
"$uv" sync --quiet --frozen --inexact --extra gpu --no-install-package "$package"

build() {
  local tools=$root/.te/build
  rm -rf "$tools"
  # CUDA's headers are in wheels too: those of the packages of torch, and two more.
  "$uv" pip install --quiet --python "$python" pip setuptools wheel ninja pybind11
  "$uv" pip install --quiet --python "$python" --no-deps nvidia-cuda-crt==13.0.* nvidia-cuda-cccl==13.0.*
  # By NVIDIA's switches: neither a wheel of theirs from the network nor a toolkit of the machine.
  NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_BUILD_USE_NVIDIA_WHEELS=1 NVTE_FRAMEWORK=pytorch \
    "$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-binary "$package" \
    --wheel-dir "$tools" "$package==$version"
  mkdir -p "$root/.te/wheels"
  mv "$tools"/*.whl "$root/.te/wheels/"
}

if [[ -z $wheel ]]; then
  kept=("$root"/.te/wheels/transformer_engine_torch-"$version"-*.whl)
  [[ -f ${kept[0]} ]] || build
  kept=("$root"/.te/wheels/transformer_engine_torch-"$version"-*.whl)
  wheel=${kept[0]}
fi
"$uv" pip install --quiet --python "$python" --no-deps "$wheel"

# Two runs, since a process sees Transformer Engine or does not: one beside the other.
"$python" -m pytest tests/te/layers >.te/layers.log 2>&1 &
layers=$!
"$python" -m pytest tests/te/commands && commands=0 || commands=$?
wait "$layers" && layers=0 || layers=$?
cat .te/layers.log
exit $((commands | layers))
