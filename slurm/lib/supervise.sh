# shellcheck shell=bash
# Supervise one start of a run inside a job, and decide what follows: finished, requeued or given up.
#
# In order: may the run start? (refuse_to_start); the check of the recipe (check_run); the nodes
# (leave_cordoned_nodes, check_nodes); training under watch (train_until_end, watch_run); what the run
# says of its end (after_the_end); another start (try_again).
#
# What the run says in state.json decides. srun's status does not: it may be 0 or 143 instead of 75,
# because it is that of another task, or of the signal that ended the others.
# RUN_FOLDER is set; messages and job steps come from common.sh.

FINISHED=0 BAD_INPUT=2 TRY_AGAIN=75 DO_NOT_RESTART=93

# --- events: what happened to a run, over all its jobs ----------------------------------------------

# note EVENT TEXT...: append a line to slurm/events.tsv: time, job, event, checkpointed step, text.
note() {
  local event=$1
  shift
  printf '%s\t%s\t%s\t%s\t%s\n' "$(date -u +%FT%TZ)" "$JOB" "$event" "$(saved_step)" "$*" \
    >>"$RUN_FOLDER/slurm/events.tsv" || say "could not write to events.tsv: is the disk full?"
  say "$event: $*"
}

events() { cat "$RUN_FOLDER/slurm/events.tsv" 2>/dev/null || true; }

# The step of the newest checkpoint as far as a file tells it; a start looks closer.
saved_step() {
  local step
  step=$(cat "$RUN_FOLDER/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || true)
  [[ $step =~ ^[0-9]+$ ]] || step=0
  printf '%s' "$step"
}

# state_of KEY: a value of state.json, which has a key a line; empty where there is none.
state_of() {
  sed -nE "/^ *\"$1\": /{s///; s/,\$//; s/^\"(.*)\"\$/\1/; p}" "$RUN_FOLDER/state.json" 2>/dev/null || true
}

# field NAME: the first of that name in what `scontrol show job` printed, from standard input.
field() {
  awk -v name="$1=" '{
    for (i = 1; i <= NF; i++)
      if (!found && index($i, name) == 1) { print substr($i, length(name) + 1); found = 1 }
  }'
}

# job_fact NAME: a field of this job, as Slurm has it now; ends the job where Slurm does not answer.
job_fact() {
  local facts
  facts=$(ask scontrol show job "$JOB") || exit 75
  field "$1" <<<"$facts"
}

# job_state: STATE/REASON, both of one moment.
job_state() {
  local facts
  facts=$(ask scontrol show job "$JOB") || exit 75
  printf '%s/%s' "$(field JobState <<<"$facts")" "$(field Reason <<<"$facts")"
}

# --- may it start? ------------------------------------------------------------------------------------

# The number of starts, the newest ones, that all began at the step of today's checkpoint.
# When a person submits again after `give-up`, the count begins at 0.
starts_without_progress() {
  events | awk -F'\t' -v step="$(saved_step)" '
    $3 == "give-up" { count = 0 }
    $3 == "start" { count = ($4 == step) ? count + 1 : 0 }
    END { print count + 0 }'
}

# refuse_to_start RECIPE...: also for jobs that waited in the queue when the run was given up or was
# finished.
refuse_to_start() {
  local other queue submitted gave_up
  # A person has asked for no further start.
  if [[ -e $RUN_FOLDER/STOP ]]; then
    note stop-file "not started: $RUN_FOLDER/STOP is there. Delete it to go on"
    exit "$TRY_AGAIN"
  fi
  [[ $(state_of status) != finished ]] || end_finished "$@"
  # Another job still trains in this folder.
  other=$(events | awk -F'\t' '$3 == "start" { job = $2 } END { print job }')
  [[ $other != "$JOB" ]] || other=
  # A link of a chain may start while the one before it is being cleaned up.
  queue=$(ask squeue -h -o '%i %t')
  while [[ -n $other ]] && grep -qx "$other CG" <<<"$queue"; do
    sleep 5
    queue=$(ask squeue -h -o '%i %t')
  done
  if [[ -n $other ]] && grep -qE "^$other (R|S|ST)\$" <<<"$queue"; then
    die "$BAD_INPUT" "job $other is training in $RUN_FOLDER. Cancel it, or give another RUN_FOLDER"
  fi
  # The run was given up while this job waited.
  gave_up=$(events | awk -F'\t' '$3 == "give-up" { time = $1 } END { print time }')
  submitted=$(job_fact SubmitTime)
  submitted=$(date -u -d "$submitted" +%FT%TZ)
  # Both in whole seconds: within the same one, nobody has read why and submitted again.
  if [[ -n $gave_up && ! $submitted > $gave_up ]]; then
    say "not started: the run was given up at $gave_up, when this job was waiting. Submit again to go on"
    exit "$DO_NOT_RESTART"
  fi
  give_up_without_progress
}

# end_finished RECIPE...: with 0 only for the recipe of that run, or a job that depends on this one
# would export a model of another.
end_finished() {
  local status=0
  ask_for_problems "$@" || status=$?
  ((status != BAD_INPUT)) ||
    die "$BAD_INPUT" "the run in $RUN_FOLDER is finished, and this start is refused: see above. Give another RUN_FOLDER"
  # No start was noted, so an automatic retry would not be counted.
  ((status == 0)) ||
    die "$TRY_AGAIN" "the run in $RUN_FOLDER is finished, and the check of the recipe ended with status $status. Submit again"
  say "this run is finished: $RUN_FOLDER"
  exit "$FINISHED"
}

give_up_without_progress() {
  local starts last
  starts=$(starts_without_progress)
  ((starts >= MAX_STARTS_WITHOUT_PROGRESS)) || return 0
  last=$(events | awk -F'\t' '$3 == "end" { text = $5 } END { print text }')
  note give-up "$starts starts in a row saved nothing beyond step $(saved_step)" \
    "(MAX_STARTS_WITHOUT_PROGRESS=$MAX_STARTS_WITHOUT_PROGRESS). Last: $last." \
    "Submit again when that is mended, or with a longer time limit than a save takes"
  exit "$DO_NOT_RESTART"
}

# --- the next start -----------------------------------------------------------------------------------

# try_again REASON...: requeue this job, or leave the run to the next job of the chain.
# Only a job that nobody has ended: Slurm would also requeue one that was cancelled.
try_again() {
  local nodes state
  note end "$*"
  state=$(job_state)
  # Newer versions say SIGNALING of a job that is being told of its end.
  if [[ ! $state =~ ^(RUNNING|SIGNALING)/|^COMPLETING/TimeLimit$ ]]; then
    say "this job was ended from outside ($state), and is not requeued by this script"
    exit "$TRY_AGAIN"
  fi
  give_up_without_progress
  # Beside those that were left out when the job was submitted.
  nodes=$(job_fact ExcNodeList)
  nodes=$(printf '%s,%s' "$nodes" "$(cordoned)" | sed -E 's/\(null\)//; s/^,|,$//g')
  if [[ $(job_fact Requeue) != 1 ]]; then
    leave_out "$nodes" "$(ask squeue -h -t PD --me -n "$SLURM_JOB_NAME" -o %i)"
    say "this job may not be requeued (--no-requeue); the next of its chain goes on"
    exit "$TRY_AGAIN"
  fi
  # Requeueing ends this script, after a moment that the nodes to avoid are told in.
  trap '' TERM
  if ! scontrol requeue "$JOB"; then
    note end "Slurm did not requeue this job. Submit it again to go on"
    exit "$TRY_AGAIN"
  fi
  leave_out "$nodes" "$JOB"
  note requeue "from step $(saved_step)"
  exit "$TRY_AGAIN"
}

# leave_out NODES JOBS: keep jobs that are pending from nodes.
leave_out() {
  local job
  [[ -n $1 ]] || return 0
  for job in $2; do
    scontrol update JobId="$job" ExcNodeList="$1" || say "could not keep job $job from $1"
  done
}

# Nodes that were found sick and that Slurm knows, with commas.
cordoned() {
  local node known=()
  while read -r node; do
    ! scontrol show node "$node" >/dev/null 2>&1 || known+=("$node")
  done < <(cut -d' ' -f1 "$TST_CORDON" 2>/dev/null | sort -u)
  (IFS=,; printf '%s' "${known[*]-}")
}

# --- one start ----------------------------------------------------------------------------------------

# ask_for_problems RECIPE...: every problem of the input, on one processor before 64 GPUs wait for it.
ask_for_problems() {
  run_tasks --nodes=1 --ntasks=1 "--time=$((START_SECONDS / 60 + 1))" -- tst-megatron check "$@" --nproc "$SLURM_NTASKS" --starting \
    --run-folder "$RUN_FOLDER" --environment "$RUN_FOLDER/slurm/environment"
}

# check_run RECIPE...: a recipe with a problem is never tried again. Any other status may be the
# node's fault, and is tried again as often as any start without progress.
check_run() {
  local status=0
  ask_for_problems "$@" || status=$?
  ((status != BAD_INPUT)) || { note end "bad input"; exit "$BAD_INPUT"; }
  ((status == 0)) || try_again "the check of the recipe ended with status $status"
  give_file "$RUN_FOLDER/slurm/environment"
}

# Sick nodes of earlier jobs, which this one could not know when it was submitted.
leave_cordoned_nodes() {
  local node here
  here=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  for node in $(cordoned | tr , ' '); do
    ! grep -qx "$node" <<<"$here" ||
      try_again "$node is noted as sick in $TST_CORDON. Delete its line when it is mended"
  done
}

# check_nodes: the checks of preflight.sbatch; nodes that fail are noted and left out from now on.
check_nodes() {
  local folder=$RUN_FOLDER/slurm/preflight-$JOB-${SLURM_RESTART_COUNT:-0} status=0
  preflight "$folder" || status=$?
  ((status != 0)) || return 0
  ((status != BAD_INPUT)) || { note end "bad input to the checks of the nodes"; exit "$BAD_INPUT"; }
  note sick "$(sick_nodes "$folder" | paste -sd' ' -)"
  try_again "the nodes did not pass, see $folder"
}

# What torch keeps of its collectives, for a run that hangs or crashes.
give_diagnosis() {
  mkdir -p "$RUN_FOLDER/slurm/flight-recorder"
  give TORCH_FR_BUFFER_SIZE 2000
  give TORCH_NCCL_DUMP_ON_TIMEOUT 1
  give TORCH_FR_DUMP_TEMP_FILE "$RUN_FOLDER/slurm/flight-recorder/rank-"
}

# train_until_end RECIPE...: the run itself, under watch; returns when no rank is left.
train_until_end() {
  local train watch
  state_before=$(state_version)
  run_tasks -- tst-megatron train "$@" --run-folder "$RUN_FOLDER" &
  train=$!
  watch_run "$train" &
  watch=$!
  # A signal ends a wait and not what it waits for.
  while kill -0 "$train" 2>/dev/null; do wait "$train" || true; done
  kill "$watch" 2>/dev/null || true
  wait "$watch" || true
}

# Tells one writing of state.json from the next, also within a second: it is written beside and renamed.
state_version() { stat -c '%i %y' "$RUN_FOLDER/state.json" 2>/dev/null || true; }

# after_the_end: act on what the run says of its end, if it is of this start: finished, stopped by a
# person, not to be tried again, or tried again.
after_the_end() {
  local status reason node
  if [[ $(state_version) == "$state_before" ]]; then
    try_again "no rank came so far that it could say how it stands"
  fi
  status=$(state_of status) reason=$(state_of reason) node=$(state_of sick_node)
  # A sick node is left out of later starts, whatever else follows.
  if [[ -n $node && $node != null ]]; then
    cordon "$node" "$reason"
    note sick "$node: $reason"
  fi
  if [[ $status == finished ]]; then
    note end "finished"
    exit "$FINISHED"
  fi
  if [[ -e $RUN_FOLDER/STOP ]]; then
    note stop-file "stopped at step $(saved_step). Delete $RUN_FOLDER/STOP and submit again to go on"
    exit "$TRY_AGAIN"
  fi
  if [[ $(state_of exit_status) == "$BAD_INPUT" ]]; then
    note end "$reason"
    exit "$BAD_INPUT"
  fi
  if [[ $(state_of exit_status) == "$DO_NOT_RESTART" ]]; then
    note give-up "the run must not be restarted: $reason"
    exit "$DO_NOT_RESTART"
  fi
  try_again "$status: $reason"
}

# What a job does when Slurm ends it: at its time limit, by scancel, or for a job that preempts it.
on_term() {
  trap '' TERM
  try_again "ended by Slurm: $(job_state)"
}

# --- watching -----------------------------------------------------------------------------------------

# to_step [--signal=NAME]: signal the step that runs, or end it; fails where none runs.
to_step() {
  local step
  step=$(squeue -h -s -j "$JOB" -o %i | grep -E "^$JOB\.[0-9]+\$" | tail -n 1) || true
  [[ -n $step ]] && scancel "$@" "$step"
}

# The newest step that the run has recorded.
recorded_step() {
  local step
  step=$(tail -n 1 "$RUN_FOLDER/metrics.jsonl" 2>/dev/null | grep -oE '"step": [0-9]+' | grep -oE '[0-9]+') || true
  printf '%s' "${step:-0}"
}

# watch_run SRUN: end the run with a checkpoint when STOP appears, and a run that hangs with its
# stacks. The heartbeat is metrics.jsonl, to which the last rank writes with each step; that it
# changes is seen by this node's clock, whatever the clock of the file server.
watch_run() {
  local train=$1 from limit beat last='' at=$SECONDS asked=no
  from=$(saved_step)
  while sleep "$WATCH_SECONDS"; do
    if [[ -e $RUN_FOLDER/STOP && $asked == no ]]; then
      say "$RUN_FOLDER/STOP is there: asking the ranks to save and stop"
      to_step --signal=USR2 && asked=yes
    fi
    beat=$(stat -c '%Y %s' "$RUN_FOLDER/metrics.jsonl" 2>/dev/null || true)
    [[ $beat == "$last" ]] || { last=$beat at=$SECONDS; }
    limit=$HANG_SECONDS
    # Until the first step of this start: building indexes, loading, compiling.
    (($(recorded_step) > from)) || limit=$START_SECONDS
    ((SECONDS - at > limit)) || continue
    note hang "no step for $limit s: the stacks of all ranks are in $RUN_FOLDER/logs," \
      "and the run is restarted"
    to_step --signal=USR1 || true
    sleep 10
    end_step "$train"
    return 0
  done
}

# end_step SRUN: try until the step has ended; the controller or a node may not answer.
end_step() {
  local attempt
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    kill -0 "$1" 2>/dev/null || return 0
    to_step || say "attempt $attempt to end the step"
    sleep 30
  done
  # What is left of it ends with the job, which is requeued.
  kill -KILL "$1" 2>/dev/null || true
}
