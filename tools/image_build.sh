#!/usr/bin/env bash
# Build the image with a builder of yours, labelled with what it is built from:
#   tools/image_build.sh docker build --tag tst-megatron:0.1.0
#   tools/image_build.sh podman build --tag tst-megatron:0.1.0 --build-arg BASE_IMAGE=python:3.12-slim
# Options are the builder's. docs/image.md has the project's own build arguments.
set -euo pipefail
if (($# < 2)); then
  echo "error: name the builder: tools/image_build.sh docker build --tag tst-megatron:0.1.0" >&2
  exit 2
fi
cd "$(dirname "$0")/.."

revision=$(git rev-parse HEAD)
[[ -z $(git status --porcelain --untracked-files=no) ]] || revision+=-dirty
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' tst_megatron/__init__.py)
read -r lock _ < <(sha256sum uv.lock)

exec "$1" "$2" "${@:3}" --file Dockerfile \
  --build-arg REVISION="$revision" --build-arg VERSION="$version" --build-arg LOCK_SHA256="$lock" \
  --build-arg CREATED="$(date -u +%FT%TZ)" .
