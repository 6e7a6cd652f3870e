# shellcheck shell=bash
# What a script was given: variables, arguments and the recipe's keys. A script looks at all of it, and
# `stop_at_problems` then ends it with a sentence for each problem, before anything starts.

PROBLEMS=()
problem() { PROBLEMS+=("$*"); }

# stop_at_problems: end with status 2 if there is any, a sentence for each.
stop_at_problems() {
  local text
  ((${#PROBLEMS[@]} > 0)) || return 0
  for text in "${PROBLEMS[@]}"; do say "error: $text" >&2; done
  exit 2
}

# shown NAME: a variable or an argument as it was given, on one line of a bearable length.
shown() {
  local value=${!1-}
  ((${#value} <= 80)) || value="${value:0:77}..."
  printf '%s=%s' "$1" "${value@Q}"
}

# whole_number NAME MIN [MAX]: 08 is none, since bash would take it for octal.
whole_number() {
  local value=${!1-} max=${3:-999999999}
  if ! [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((value < $2 || value > max)); then
    problem "$(shown "$1"): must be a whole number from $2${3:+ to $3}, without zeros in front"
  fi
}

# one_of NAME WORD...
one_of() {
  local name=$1 word
  shift
  for word in "$@"; do [[ ${!name-} != "$word" ]] || return 0; done
  problem "$(shown "$name"): must be one of: $*"
}

# readable NAME: a file that is there.
readable() { [[ -f ${!1-} && -r ${!1} ]] || problem "$(shown "$1"): no such file on $(hostname), or not readable"; }

# folder NAME: a folder that is there.
folder() { [[ -d ${!1-} ]] || problem "$(shown "$1"): no such folder on $(hostname)"; }

# new_path NAME: what something is going to be written to, and is made with the folders above it.
new_path() {
  local path=${!1-}
  if [[ -z $path || $path == -* ]]; then
    problem "$(shown "$1"): must be a path, and one that does not begin with -"
    return 0
  fi
  while
    [[ $path == */* ]] && path=${path%/*} || path=.
    [[ ! -e ${path:=/} && ! -L $path ]]
  do :; done
  [[ -d $path && -w $path ]] || problem "$(shown "$1"): $path is no folder that can be written to"
}

# new_folder NAME: the same for a folder, which may be there.
new_folder() {
  local path=${!1-}
  new_path "$1"
  path=$(realpath -m -- "$path")
  if [[ $PWD/ == "${path%/}"/* ]]; then
    problem "$(shown "$1"): must be a folder of its own, and not one that the project is in"
  elif [[ -e ${!1} || -L ${!1} ]] && ! [[ -d ${!1} && -w ${!1} ]]; then
    problem "$(shown "$1"): is no folder that can be written to"
  fi
}

# keys WHERE WORD...: what differs from a recipe.
keys() {
  local where=$1 word
  shift
  for word in "$@"; do
    [[ $word == [!-]*=* ]] || problem "$where: ${word@Q} is not KEY=VALUE. Options of sbatch come before the script"
  done
}

# split_words NAME TEXT: an array of the words of a line, with quotes as in a shell and nothing else
# of a shell's. Fails where a quote is not closed.
split_words() {
  local text
  mapfile -t "$1" < <(:)
  text=$(xargs -r printf '%s\n' <<<"$2" 2>/dev/null) || return 1
  [[ -z $text ]] || mapfile -t "$1" <<<"$text"
}

# check_job: the number of tasks, and the file for nodes that are found sick.
check_job() {
  # Not every version of Slurm says it where only the tasks of a node are given.
  if [[ -z ${SLURM_NTASKS:-} && -n ${SLURM_NTASKS_PER_NODE:-} && -n ${SLURM_NNODES:-} ]]; then
    export SLURM_NTASKS=$((SLURM_NTASKS_PER_NODE * SLURM_NNODES))
  fi
  [[ -n ${SLURM_NTASKS:-} ]] ||
    problem "Slurm does not say how many tasks this job has. Give sbatch --nodes and --ntasks-per-node"
  new_path TST_CORDON
  [[ ! -e $TST_CORDON || -w $TST_CORDON ]] || problem "$(shown TST_CORDON): cannot be written to"
}
