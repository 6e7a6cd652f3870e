# shellcheck shell=bash
# Checks of a job's nodes: GPU, memory, disks, clock, software, collectives. What each looks at is
# in `tst-megatron preflight --help`; here is how a job asks all nodes and finds the sick ones.

# check_preflight [OPTION...]: what it is given, as problems.
check_preflight() {
  if [[ " $* " != *" --write-baseline "* ]]; then
    [[ -z ${TST_BASELINE:-} || -r ${TST_BASELINE} ]] ||
      problem "$(shown TST_BASELINE): no such file. sbatch slurm/preflight.sbatch --write-baseline makes it"
  elif [[ -n ${TST_BASELINE:-} ]]; then
    new_path TST_BASELINE
  elif [[ " $* " != *" --baseline"[\ =]* ]]; then
    problem "--write-baseline: set TST_BASELINE in slurm/site.env to the file to write"
  fi
}

# preflight FOLDER [OPTION...]: every rank checks itself, its node and the network; sick nodes are
# said, noted in TST_CORDON, and left in FOLDER/sick-nodes. 75 if anything is wrong with them, 2 with the options.
preflight() {
  local folder=$1 status=0 node
  shift
  mkdir -p "$folder"
  ask_nodes 1 "$folder" "$SLURM_JOB_NODELIST" "$SLURM_NNODES" "$@" || status=$?
  ((status != 2)) || return 2
  if ((status != 0)) && [[ -e $folder/sick-nodes && ! -s $folder/sick-nodes ]] && ((SLURM_NNODES > 2)); then
    say "no node is sick by itself: asking pairs of neighbours"
    ask_pairs "$folder"
  fi
  for node in $(sick_nodes "$folder"); do
    say "sick node: $node"
    cordon "$node" "see $folder"
  done
  return "$status"
}

sick_nodes() { sort -u "$1/sick-nodes" 2>/dev/null || true; }

# ask_nodes USE FOLDER NODELIST NUM_NODES [OPTION...]: the checks on some of the job's nodes.
ask_nodes() {
  local use=$1 folder=$2 nodes=$3 number=$4 ranks=$(($4 * SLURM_NTASKS / SLURM_NNODES)) status=0
  shift 4
  mkdir -p "$folder"
  meet_at "$use" "$nodes"
  # A rank that hangs is ended by the limit, and found by the file that it did not finish. The first
  # that finds itself sick must not end the others.
  run_tasks --kill-on-bad-exit=0 --wait=0 "--time=$PREFLIGHT_MINUTES" \
    "--nodelist=$nodes" "--nodes=$number" "--ntasks=$ranks" -- \
    tst-megatron preflight "$folder" --timeout $((PREFLIGHT_MINUTES * 20)) \
    ${TST_BASELINE:+--baseline "$TST_BASELINE"} "$@" || status=$?
  # No rank had more to say than that its options are wrong, which makes no node sick.
  ((status != 2)) || return 2
  run_tasks "--time=$PREFLIGHT_MINUTES" "--nodelist=$(first_node "$nodes")" --nodes=1 --ntasks=1 -- \
    tst-megatron preflight-verdict "$folder" \
    --hosts "$(scontrol show hostnames "$nodes" | paste -sd, -)" --ranks "$ranks"
}

# ask_pairs FOLDER: on a ring of nodes, one is sick if both its pairs fail, and not all pairs do.
ask_pairs() {
  local folder=$1 hosts first index well pids=()
  mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # Pairs that share no node run at once: those from even places, from odd ones, and the ring's last.
  for first in 0 1; do
    pids=()
    for ((index = first; index + 1 < ${#hosts[@]}; index += 2)); do
      ask_pair "$index" "$folder" "${hosts[index]}" "${hosts[index + 1]}" &
      pids+=($!)
    done
    wait "${pids[@]}" || true
  done
  ask_pair "${#hosts[@]}" "$folder" "${hosts[0]}" "${hosts[-1]}"
  well=$(find "$folder" -name well)
  [[ -n $well ]] || return 0
  for first in "${hosts[@]}"; do
    grep -qE "/($first\+[^/]*|[^/]*\+$first)/well$" <<<"$well" ||
      printf '%s\n' "$first" >>"$folder/sick-nodes"
  done
}

# ask_pair NUMBER FOLDER FIRST SECOND: leaves a file `well` where the two passed.
ask_pair() {
  local folder=$2/$3+$4
  ! ask_nodes $((2 + $1)) "$folder" "$3,$4" 2 || touch "$folder/well"
}
