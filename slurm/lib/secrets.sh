# shellcheck shell=bash
# The file that TST_SECRETS names: lines of NAME=VALUE. It is read and not run, and of a line that is
# wrong only its number is said. common.sh looks at it before anything starts, and each rank reads it.

# read_secrets FILE: export its values. Fails with a sentence on standard error.
read_secrets() {
  local _line _number=0 _value _bad=() _form
  if [[ ! -f $1 || ! -r $1 ]]; then
    printf 'TST_SECRETS=%s: no such file on %s, or not readable\n' "$1" "$(hostname)" >&2
    return 1
  fi
  _value=$(stat -L -c %a -- "$1")
  # As ssh does with a key.
  if ((8#$_value & 8#077)); then
    printf 'TST_SECRETS=%s: has mode %s, and others could read or change it. chmod 600 it\n' "$1" "$_value" >&2
    return 1
  fi
  _form='^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*[^[:space:]])?[[:space:]]*$'
  while IFS= read -r _line || [[ -n $_line ]]; do
    ((_number += 1))
    [[ ! ${_line%$'\r'} =~ ^[[:space:]]*(#.*)?$ ]] || continue
    if [[ $_line =~ $_form ]]; then
      _line=${BASH_REMATCH[2]} _value=${BASH_REMATCH[3]}
      if [[ $_value =~ ^\"([^\"]*)\"$ || $_value =~ ^\'([^\']*)\'$ ]]; then
        _value=${BASH_REMATCH[1]}
      elif [[ $_value =~ ^[\"\'] || $_value =~ [[:space:]] ]]; then
        _bad+=("$_number")
        continue
      fi
      # Some names are bash's own, such as UID, and cannot be set.
      if [[ ! $(declare -p "$_line" 2>/dev/null) =~ ^declare\ -[a-zA-Z]*r ]]; then
        export "$_line=$_value"
        continue
      fi
    fi
    _bad+=("$_number")
  done <"$1"
  ((${#_bad[@]} > 0)) || return 0
  printf 'TST_SECRETS=%s: not NAME=VALUE in line %s. A value with spaces needs quotes around it\n' \
    "$1" "${_bad[*]}" >&2
  return 1
}
