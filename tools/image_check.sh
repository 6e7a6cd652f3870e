#!/usr/bin/env bash
# Build the Dockerfile on a plain base and run the image as a user without a name, without a network:
# `tst-megatron doctor` and the short quickstart. For a machine without a container daemon: as root,
# on Debian 12, with the Python that runs here. Everything is deleted afterwards. docs/image.md.
set -euo pipefail
cd "$(dirname "$0")/.."

ANY_USER=12345:12345
NEEDED_GB=35
# What the Python copied into the base is linked to.
LIBRARIES=ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8
LIBRARIES+=,libsqlite3-0,libssl3,libuuid1,zlib1g
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

fail() {
  echo "error: $*" >&2
  exit 1
}

step() { printf '\n=== %s, after %d s, %s free\n' "$1" "$SECONDS" "$(df -h --output=avail "$scratch" | tail -n 1)"; }

check_machine() {
  local missing=() name
  ((EUID == 0)) || fail "image-check needs root: it makes a base image with debootstrap"
  for name in buildah debootstrap git ip unshare uv; do
    command -v "$name" >/dev/null || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || fail "not installed: ${missing[*]}. apt-get install buildah debootstrap iproute2 git"
  command -v python3.12 >/dev/null || fail "no python3.12 on PATH: the base gets a copy of it"
  prefix=$(python3.12 -c 'import sys; print(sys.base_prefix)')
  local free
  free=$(df --output=avail -BG "${TMPDIR:-/var/tmp}" | tail -n 1 | tr -dc 0-9)
  ((free >= NEEDED_GB)) || fail "${TMPDIR:-/var/tmp} has $free GB free, and the build takes $NEEDED_GB: set TMPDIR"
}

clean_up() {
  local status=$?
  [[ -z ${container:-} ]] || image unmount "$container" >/dev/null 2>&1 || true
  # A mount that was left would be emptied with the folder.
  local place
  while read -r place; do umount --lazy "$place" || true; done \
    < <(awk -v folder="$scratch/" 'index($2, folder) == 1 {print $2}' /proc/mounts | sort -r)
  if grep -q " $scratch/" /proc/mounts; then
    echo "error: $scratch is left: something is still mounted in it" >&2
    exit 1
  fi
  rm -rf --one-file-system "$scratch"
  ((status == 0)) || echo "image-check: failed with status $status; $scratch is deleted" >&2
  exit "$status"
}

make_base() {
  local root
  container=$(image from scratch)
  root=$(image mount "$container")
  debootstrap --variant=minbase --include="$LIBRARIES" bookworm "$root" "$MIRROR" >"$scratch/debootstrap.log" \
    || { tail -n 20 "$scratch/debootstrap.log" >&2; fail "debootstrap"; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  # Python alone, without what this machine has installed into it.
  tar -C "$prefix" --exclude='*/site-packages/*' --exclude='*/test/*' --exclude=__pycache__ \
    --exclude=share --exclude='*.a' -cf - bin lib | tar -C "$root/usr/local" --no-same-owner -xf -
  chroot "$root" /sbin/ldconfig
  chroot "$root" /usr/local/bin/python3.12 -m ensurepip >/dev/null
  ln -sf python3.12 "$root/usr/local/bin/python3"
  image unmount "$container" >/dev/null
  image config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  image commit --quiet "$container" plain-base >/dev/null
  image rm "$container" >/dev/null
  container=
}

# How this machine reaches a package index, as secrets: for the build alone, and never in the image.
find_secrets() {
  local index file
  index=${PIP_INDEX_URL:-$("$prefix/bin/python3.12" -m pip config get global.index-url 2>/dev/null || true)}
  index=${UV_DEFAULT_INDEX:-$index}
  if [[ -n $index ]]; then
    (umask 077 && printf '[global]\nindex-url = %s\n' "$index" >"$scratch/pip.conf")
    (umask 077 && printf 'index-url = "%s"\n' "$index" >"$scratch/uv.toml")
    secrets+=(--secret "id=pip.conf,src=$scratch/pip.conf" --secret "id=uv.toml,src=$scratch/uv.toml")
  fi
  file=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  [[ ! -f $file ]] || secrets+=(--secret "id=ca.pem,src=$file")
}

# uv's cache of this machine is the build's, so that a second build downloads nothing.
share_cache() {
  local cache
  cache=$(uv cache dir)
  mkdir -p "$cache" "$scratch/tmp/buildah-cache"
  ln -s "$cache" "$scratch/tmp/buildah-cache/tst-megatron-uv"
}

build() {
  secrets=()
  find_secrets
  share_cache
  # This storage keeps a whole copy of the image for each layer, so one for the whole stage.
  tools/image_build.sh image bud --isolation chroot --layers=false --pull-never \
    --build-arg BASE_IMAGE=localhost/plain-base "${secrets[@]}" --tag checked
}

# inside COMMAND...: run in the image as its own settings say, as any user, with loopback alone.
inside() {
  # shellcheck disable=SC2016
  unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
    image run --isolation chroot --user "$ANY_USER" "$container" -- "$@"
}

check_machine
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/tst-image.XXXXXX")
container=
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir "$scratch/tmp" "$scratch/bin"
export TMPDIR=$scratch/tmp PATH=$scratch/bin:$PATH
# Storage of its own: whatever else this machine builds is not touched.
printf '#!/bin/sh\nexec buildah --storage-driver vfs --root "%s" --runroot "%s" "$@"\n' \
  "$scratch/root" "$scratch/run" >"$scratch/bin/image"
chmod +x "$scratch/bin/image"

step "plain base"
make_base
step "build"
build
step "container"
container=$(image from --pull-never checked)
root=$(image mount "$container")
du -sh "$root"
# Of another user's, so that nobody else could write there.
left=$(ls -A "$root/tmp")$(ls -A "$root/home/tst")
[[ -z $left ]] || fail "the build left files in /tmp, or in /home/tst, everybody's home: $left"
[[ -z $(find "$root/opt/tst_megatron" -not -perm -o+r) ]] || fail "not everybody can read /opt/tst_megatron"
image inspect --type image --format '{{.OCIv1.Config.Labels}}' checked
step "doctor, as $ANY_USER without a network"
inside tst-megatron doctor
step "quickstart, as $ANY_USER without a network"
inside tst-megatron quickstart --short --folder /tmp/quickstart
step "passed"
