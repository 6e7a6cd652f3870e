#!/usr/bin/env bash
# One task of a job step: become a rank, bind to the processors beside the GPU, run the command.
# Runs inside the container, where there is one; common.sh starts it.
set -euo pipefail

if [[ -n ${TST_VENV:-} ]]; then
  # shellcheck source=/dev/null
  . "$TST_VENV/bin/activate"
fi
if [[ -n ${TST_SECRETS:-} ]]; then
  # shellcheck source-path=SCRIPTDIR/../..
  . slurm/lib/secrets.sh
  read_secrets "$TST_SECRETS" || exit 2
fi

local_rank=$SLURM_LOCALID
# A command that meets no others is not told that it is a rank: libraries would wait for them.
if [[ ${TST_RANKS:-} == yes ]]; then
  export RANK=$SLURM_PROCID LOCAL_RANK=$local_rank WORLD_SIZE=$SLURM_NTASKS
fi
once_per_node() { [[ $local_rank != 0 ]] || printf '%s: %s\n' "${SLURMD_NODENAME:-$(hostname)}" "$*" >&2; }

# Compilers write thousands of small files: to the node's own disk, and no two jobs to one place.
# A container may lack the host's.
[[ -d ${TMPDIR:-/tmp} ]] || export TMPDIR=/tmp
scratch=${TST_SCRATCH:-${TMPDIR:-/tmp}}
caches=$scratch/tst-$(id -u)-$SLURM_JOB_ID
if [[ $local_rank == 0 ]]; then
  # Of jobs that ended long ago. No link is followed, and nobody else's folder is touched.
  old=(-maxdepth 1 -type d -user "$(id -u)" -name "tst-$(id -u)-*" -mtime +7)
  find "$scratch/" "${old[@]}" -exec rm -rf --one-file-system -- {} + 2>/dev/null || true
fi
# Programs are loaded from it, and everybody can guess its name: only one that this user alone can
# write to is used. Else another, for each rank its own. To end instead would let anybody end the job.
mkdir -m 700 -- "$caches" 2>/dev/null || true
if [[ ! -d $caches || -L $caches || ! -O $caches || $(stat -c %a -- "$caches") != ?(?)700 ]]; then
  once_per_node "$caches is not a folder of this user alone (mode 700): compilers' caches go to others"
  caches=$(mktemp -d -- "$caches-XXXXXX") || exit 1
fi
export TRITON_CACHE_DIR=$caches/triton TORCHINDUCTOR_CACHE_DIR=$caches/inductor
# Libraries write and load more of the kind below HOME, which in an image may be everybody's.
if [[ ! -d ${HOME:-} || ! -w $HOME ]] || ((8#$(stat -L -c %a -- "$HOME") & 8#002)); then
  export HOME=$caches/home
  [[ -d $HOME ]] || mkdir -m 700 -- "$HOME" 2>/dev/null || [[ -d $HOME ]]
fi
# Slurm's signal before the time limit is for the training alone: it ends a check that it finds.
[[ ${2:-} == train ]] || trap '' USR2
ulimit -c 0
# As far as the node allows.
ulimit -S -n "$(ulimit -H -n)"
ulimit -S -l "$(ulimit -H -l)"

bound=()
if [[ ${TST_BIND:-numa} == numa && -n ${SLURM_GPUS_ON_NODE:-} ]] && command -v nvidia-smi >/dev/null; then
  # A GPU that does not answer is for the checks of the nodes to find.
  ask=(nvidia-smi --query-gpu=pci.bus_id "--format=csv,noheader" --id="$local_rank")
  bus=$(timeout 60 "${ask[@]}" 2>/dev/null || true)
  # nvidia-smi writes eight digits of the domain, the kernel four.
  bus=${bus,,}
  numa=$(cat "/sys/bus/pci/devices/${bus#0000}/numa_node" 2>/dev/null || printf '%s' -1)
  if ((numa < 0)); then
    once_per_node "ranks are not bound to processors: the kernel does not say where GPU $local_rank is"
  elif ! command -v numactl >/dev/null; then
    once_per_node "ranks are not bound to processors: numactl is not installed"
  else
    # Memory of another socket when this one's is full, and not the end of the rank.
    bound=(numactl "--cpunodebind=$numa" "--preferred=$numa")
    if ! "${bound[@]}" true 2>/dev/null; then
      once_per_node "ranks are not bound to processors: the job may not use those of GPU $local_rank"
      bound=()
    fi
  fi
fi

exec ${bound[@]+"${bound[@]}"} "$@"
