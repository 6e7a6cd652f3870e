# Sourced: `uv` is a program of that name, fetched into the checkout `root` where there is none.
# shellcheck shell=bash
uv=$(command -v uv || true)
# A name on PATH may be a shim without a program behind it.
if ! "${uv:-false}" --version >/dev/null 2>&1; then
  # shellcheck disable=SC2154 # The script that sources this sets it.
  uv=$root/.uv/bin/uv
  [[ -x $uv ]] || make --no-print-directory -C "$root" .uv/bin/uv >&2
fi
