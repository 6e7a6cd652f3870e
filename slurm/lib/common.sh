# shellcheck shell=bash
# What every job script shares: messages, this cluster's settings, and the one way to start tasks.
# Sourced with the project's folder as the current one.

say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*"; }

# die STATUS TEXT...
die() {
  local status=$1
  shift
  say "error: $*" >&2
  exit "$status"
}

[[ -n ${SLURM_JOB_ID:-} ]] || die 2 "this is a job script: start it with sbatch, from the project's folder"

. slurm/lib/given.sh
. slurm/lib/secrets.sh

# The task of an array by its own name: Slurm takes the number of its last one for the whole array.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# Formats of the user's own are not for these scripts.
unset SLURM_TIME_FORMAT TST_RANKS "${!SQUEUE_@}"

# ask COMMAND...: a question to Slurm, asked again while the controller does not answer.
ask() {
  local attempt
  for attempt in 1 2 3 4 5; do
    # With its status: a bare return in a trap has the status of what the trap interrupted.
    "$@" && return 0
    ((attempt == 5)) || sleep 3
  done
  die 75 "Slurm does not answer: $*"
}

# --- this cluster's settings ------------------------------------------------------------------------

# In front of sbatch wins over the file, which wins over the defaults below.
_site=${TST_SITE:-slurm/site.env}
if [[ ! -r $_site ]]; then
  [[ -z ${TST_SITE:-} ]] || problem "TST_SITE=$TST_SITE: no such file"
elif ! bash -n "$_site" 2>/dev/null; then
  problem "$_site: bash cannot read it. \`bash -n $_site\` says where"
else
  # Of the scripts' own variables those that are exported: a default is not.
  _given=$(
    declare -p | grep -E \
      -e '^declare -[a-z-]* ?(TST_|NCCL_|GLOO_|UCX_)[A-Z0-9_]*=' \
      -e '^declare -x (RUN_FOLDER|SWEEP_FOLDER|(MAX_STARTS|START|HANG|WATCH|PREFLIGHT|PREPARE)[A-Z_]*)=' || true
  )
  _failed=
  # Not of the last line's status, which is that of the whole file, and may be of a [[ ]] && ...
  trap '[[ ${BASH_SOURCE[0]} != "$_site" ]] || _failed=${_failed:-$LINENO}' ERR
  set +eu
  # What bash says of a line that fails shows a part of it, which may be a secret.
  # shellcheck source=/dev/null
  . "$_site" 2>/dev/null
  set -eu
  trap - ERR
  [[ -z $_failed ]] || problem "$_site: line $_failed failed. A value with spaces needs quotes"
  eval "$_given"
fi
TST_ENVIRONMENT=${TST_ENVIRONMENT:-plain}
TST_CORDON=${TST_CORDON:-slurm/cordoned-nodes}
if [[ $TST_ENVIRONMENT == plain && -z ${TST_VENV:-} && -x .venv/bin/tst-megatron ]]; then TST_VENV=$PWD/.venv; fi

# --- what processes are given -----------------------------------------------------------------------

# Named one by one, since values that an image sets win over the host's where they are not.
GIVEN=()

# give NAME VALUE: put a variable into the environment of every process that run_tasks starts.
give() {
  export "$1=$2"
  # Apptainer lets the image win, except over these.
  export "APPTAINERENV_$1=$2"
  local name
  for name in ${GIVEN[@]+"${GIVEN[@]}"}; do [[ $name == "$1" ]] && return 0; done
  GIVEN+=("$1")
}

# give_file FILE: the same for lines of NAME=VALUE.
give_file() {
  local name value
  while IFS='=' read -r name value; do
    [[ -z $name ]] || give "$name" "$value"
  done <"$1"
}

# What was given, and nothing else: the rest of the environment may hold secrets.
show_given() {
  local name
  for name in "${GIVEN[@]}"; do say "environment: $name=${!name}"; done
}

# check_site: what slurm/site.env or the environment says of the cluster, as problems.
check_site() {
  local entry entries
  one_of TST_ENVIRONMENT plain pyxis apptainer
  case $TST_ENVIRONMENT in
    plain)
      if [[ -n ${TST_VENV:-} ]]; then
        [[ -r $TST_VENV/bin/activate ]] || problem "$(shown TST_VENV): no virtual environment, which has bin/activate"
      elif ! command -v tst-megatron >/dev/null; then
        problem "no tst-megatron: neither .venv in $PWD nor PATH has it. Install it, or set TST_VENV in slurm/site.env"
      fi
      ;;
    pyxis | apptainer)
      [[ -n ${TST_IMAGE:-} ]] || problem "TST_ENVIRONMENT=$TST_ENVIRONMENT needs TST_IMAGE, the image's file"
      # A name in a registry has no file.
      [[ ${TST_IMAGE:-} != /* ]] || readable TST_IMAGE
      ;;
  esac
  [[ -z ${TST_BIND:-} ]] || one_of TST_BIND numa none
  [[ -z ${TST_MASTER_PORT:-} ]] || whole_number TST_MASTER_PORT 1 65535
  [[ ${TST_MASTER_ADDR:-}${TST_ADDRESS_SUFFIX:-} =~ ^[A-Za-z0-9._:-]*$ ]] ||
    problem "$(shown TST_MASTER_ADDR), $(shown TST_ADDRESS_SUFFIX): must be a name or an address of a node, and an end of one"
  [[ -z ${TST_SCRATCH:-} ]] || folder TST_SCRATCH
  [[ -z ${TST_SCRATCH:-} || $TST_SCRATCH == /* ]] || problem "$(shown TST_SCRATCH): must begin with /"
  if [[ -n ${TST_SECRETS:-} ]]; then
    TST_SECRETS=$(realpath -m -- "$TST_SECRETS")
    # In a process of its own, which forgets what it has read.
    entry=$(read_secrets "$TST_SECRETS" 2>&1) || problem "$entry"
  fi
  IFS=, read -r -a entries <<<"${TST_MOUNTS:-}"
  for entry in ${entries[@]+"${entries[@]}"}; do
    [[ $entry == /* && -e ${entry%%:*} ]] ||
      problem "TST_MOUNTS: ${entry@Q} is not HOST[:CONTAINER[:ro]] with a HOST that is on $(hostname)"
  done
}

# set_up: the environment of every process but for its run's own part. Stops at problems.
set_up() {
  local name
  check_site
  stop_at_problems
  [[ $TST_ENVIRONMENT == plain ]] ||
    say "image: $TST_IMAGE$([[ $TST_IMAGE != /* ]] || stat -c ' (%s bytes, of %y)' "$TST_IMAGE")"
  # A virtual environment of the host's is none in a container.
  [[ $TST_ENVIRONMENT == plain ]] || TST_VENV=
  for name in TST_VENV TST_SECRETS TST_SCRATCH TST_BIND "${!NCCL_@}" "${!GLOO_@}" "${!UCX_@}"; do
    [[ -z ${!name:-} ]] || give "$name" "${!name}"
  done
  # Both or none: gloo carries what NCCL does not.
  [[ -z ${NCCL_SOCKET_IFNAME:-} ]] || give GLOO_SOCKET_IFNAME "${GLOO_SOCKET_IFNAME:-$NCCL_SOCKET_IFNAME}"
  give OMP_NUM_THREADS "${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
  give PYTHONUNBUFFERED 1
  give PYTHONFAULTHANDLER 1
  give TOKENIZERS_PARALLELISM false
  give NCCL_DEBUG "${NCCL_DEBUG:-WARN}"
  # 64 ranks that ask a hub for a file they have would be turned away.
  give HF_HUB_OFFLINE 1
  give TRANSFORMERS_OFFLINE 1
}

# --- addresses --------------------------------------------------------------------------------------

# new_port USE: a port of this start of this job, above what services have and below what Linux
# hands out by itself. USE tells one step of the job from another.
new_port() {
  local offset=$(((SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0} + 3001 * $1) % 10000))
  printf '%s\n' "${TST_MASTER_PORT:-$((20000 + offset))}"
}

# No pipe into a command that ends early, here and in all scripts: of a job of many nodes the first
# command would still be writing, and its end by SIGPIPE would end the script.
first_node() {
  local names
  names=$(scontrol show hostnames "$1") || return
  printf '%s\n' "${names%%$'\n'*}"
}

# meet_at USE [NODELIST]: tell the ranks of the next step, on these nodes, where they find each other.
meet_at() {
  local first first_of_job
  first=$(first_node "${2:-$SLURM_JOB_NODELIST}") first_of_job=$(first_node "$SLURM_JOB_NODELIST")
  # An address that was given is that of the job's first node, so it serves no other first node.
  if [[ -n ${TST_MASTER_ADDR:-} && $first == "$first_of_job" ]]; then
    give MASTER_ADDR "$TST_MASTER_ADDR"
  else
    give MASTER_ADDR "$first${TST_ADDRESS_SUFFIX:-}"
  fi
  give MASTER_PORT "$(new_port "$1")"
  give TST_RANKS yes
}

# --- runs and nodes -----------------------------------------------------------------------------------

# run_name RECIPE: the name of its run's folder where none is given; that of `tst-megatron train`.
run_name() {
  local name=${1##*/}
  [[ ! $name =~ ^(.+)\.[^.]+$ ]] || name=${BASH_REMATCH[1]}
  printf '%s-%s' "$(basename -- "$(dirname -- "$(realpath -m -- "$1")")")" "$name"
}

# cordon NODE REASON: note a sick node, which no start of a run is on until its line is deleted.
cordon() { printf '%s %s job %s: %s\n' "$1" "$(date -u +%FT%TZ)" "$JOB" "$2" >>"$TST_CORDON"; }

# --- tasks ------------------------------------------------------------------------------------------

# Folders that tasks read and write beside the project's; a container sees them under their names.
FOLDERS=()

mounts() {
  printf '%s:%s' "$PWD" "$PWD"
  local folder
  local baseline=${TST_BASELINE:+$(realpath -m "$(dirname "$TST_BASELINE")")}
  for folder in ${FOLDERS[@]+"${FOLDERS[@]}"} "${TST_SCRATCH:-}" "$baseline"; do
    [[ -z $folder || $folder/ == "$PWD"/* ]] || printf ',%s:%s' "$folder" "$folder"
  done
  [[ -z ${TST_SECRETS:-} ]] || printf ',%s:%s:ro' "$TST_SECRETS" "$TST_SECRETS"
  [[ -z ${TST_MOUNTS:-} ]] || printf ',%s' "$TST_MOUNTS"
}

# run_tasks SRUN_OPTION... -- COMMAND...: start tasks where TST_ENVIRONMENT says; the only srun here.
# One task is one rank with one GPU, and sees all GPUs of its node: NVLink needs that.
run_tasks() {
  local options=() inside=() given
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  # Unlike Slurm before 22.05, srun does not take this over.
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  case $TST_ENVIRONMENT in
    plain) ;;
    pyxis)
      given=$(IFS=,; printf '%s' "${GIVEN[*]}")
      options+=(
        "--container-image=${TST_IMAGE:?TST_ENVIRONMENT=pyxis needs TST_IMAGE}"
        "--container-mounts=$(mounts)" "--container-workdir=$PWD"
        "--container-env=$given"
        # A home folder's packages would come before the image's.
        --no-container-mount-home --no-container-entrypoint
      )
      ;;
    apptainer)
      inside=(apptainer exec --no-home --bind "$(mounts)" --pwd "$PWD")
      [[ -z ${SLURM_GPUS_ON_NODE:-}${SLURM_JOB_GPUS:-} ]] || inside+=(--nv)
      inside+=("${TST_IMAGE:?TST_ENVIRONMENT=apptainer needs TST_IMAGE}")
      ;;
  esac
  # --export=ALL: a job of `sbatch --export=NONE` would hand that on, and ranks had no variables.
  # Ranks of a node follow each other, or experts would be spread over nodes.
  srun --export=ALL --kill-on-bad-exit=1 --wait=60 --label --cpu-bind=none --distribution=block ${options[@]+"${options[@]}"} \
    ${inside[@]+"${inside[@]}"} bash slurm/lib/rank.sh "$@"
}
