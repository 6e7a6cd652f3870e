"""Give each of Megatron's keys its kind: what the run is, or only how, when and where it works.

This is the one table of kinds. Whatever asks "does this key decide the run?" asks here: the rule
for resuming, a start in another layout, reading a model's weights in one process, ``bench step``. A
run may be resumed with other values of every kind but the first:

======================  ========================================================================
``RUN``                 what the run is: model, text, optimizer, arithmetic, and every key whose
                        effect on numbers was not shown to be none; listed in ``run_keys.py``
``LAYOUT``              how the model is cut over ranks; free where the checkpoint loads into the
                        new layout (``checkpoint/resharding.py``)
``RUNS``                how the run works: workers, timeouts, ways of saving
``EVALUATES``           when it evaluates, and on what; see ``evaluation_leaves_a_trace``
``WRITES``, ``REPORTS``  where it writes, and what it reports how often
======================  ========================================================================

A key that only says how a run works is one word in ``_WORK``. Keys have Megatron's first spelling.
``tests/megatron/training/test_same_run.py`` compares the table with Megatron's parser, so a key of
a new version of Megatron must be given a kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from tst_megatron.recipe.keys.run_keys import COMPUTING_KEYS, MODEL_KEYS, OTHER_KEYS, TRAINING_KEYS


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SIZE_KEYS = _words(
    """
    tensor-model-parallel-size sequence-parallel context-parallel-size pipeline-model-parallel-size
    num-layers-per-virtual-pipeline-stage num-virtual-stages-per-pipeline-rank
    pipeline-model-parallel-layout decoder-first-pipeline-num-layers
    decoder-last-pipeline-num-layers account-for-embedding-in-pipeline-split
    account-for-loss-in-pipeline-split expert-model-parallel-size expert-tensor-parallel-size
    """
)
"""How the model is cut."""

TRANSPORT_KEYS = _words(
    """
    overlap-grad-reduce overlap-param-gather ddp-bucket-size ddp-num-buckets
    ddp-pad-buckets-for-high-nccl-busbw num-distributed-optimizer-instances
    moe-token-dispatcher-type moe-enable-deepep moe-flex-dispatcher-backend
    moe-shared-expert-overlap tp-comm-overlap cp-comm-type hierarchical-context-parallel-sizes
    no-overlap-p2p-communication overlap-p2p-communication-warmup-flush
    microbatch-group-size-per-virtual-pipeline-stage use-tp-pp-dp-mapping
    """
)
"""How the parts of the model communicate, which changes with the sizes."""

LAYOUT_KEYS = (
    *SIZE_KEYS,
    *TRANSPORT_KEYS,
    # It decides the padded vocabulary, and `reshard_problems` refuses another size of that.
    "make-vocab-size-divisible-by",
    # How much must be computed twice depends on what fits into memory.
    "recompute-granularity",
    "recompute-method",
    "recompute-num-layers",
    "recompute-modules",
    "recompute-activations",
    "distribute-saved-activations",
)
"""Keys that may change if the newest checkpoint loads into the new layout. ``micro-batch-size`` is
not among them, because an auxiliary loss is taken over a micro-batch."""

_WORK = _words(
    """
    num-workers dataloader-fast-cache-load dataloader-defer-npy-index-mmap no-mmap-bin-files
    num-dataset-builder-threads distributed-timeout-minutes distributed-timeout-seconds-after-init
    local-rank high-priority-stream-groups pipeline-model-parallel-comm-backend
    tp-comm-bootstrap-backend no-align-grad-reduce no-align-param-gather exit-duration-in-mins
    exit-interval exit-signal-handler exit-signal exit-signal-handler-for-dataloader
    exit-signal-handler-for-training adlr-autoresume adlr-autoresume-interval manual-gc
    manual-gc-interval no-manual-gc-eval empty-unused-memory-level train-sync-interval
    no-pin-cpu-grads no-pin-cpu-params check-weight-hash-across-dp-replicas-interval
    check-for-large-grads check-for-spiky-loss rerun-mode
    flight-recorder-trace-buffer-size no-flight-recorder-dump-on-timeout
    flight-recorder-include-stack-trace no-flight-recorder-include-only-active
    no-flight-recorder-extra-dump-on-exec enable-ft-package calc-ft-timeouts ft-num-warmup-iters
    inprocess-max-iterations inprocess-monitor-thread-interval inprocess-monitor-process-interval
    inprocess-progress-watchdog-interval inprocess-heartbeat-interval inprocess-soft-timeout
    inprocess-hard-timeout inprocess-heartbeat-timeout inprocess-barrier-timeout
    inprocess-completion-timeout inprocess-last-call-wait inprocess-termination-grace-time
    """
)
"""Loading, waiting, checking and ending. A check changes no number that it accepts."""

_SAVING = _words(
    """
    save-interval save-retain-interval async-save async-strategy use-persistent-ckpt-worker
    async-ckpt-cpu-priority async-ckpt-io-priority async-ckpt-use-cpu-shm
    no-ckpt-fully-parallel-save ckpt-fully-parallel-save ckpt-fully-parallel-load
    ckpt-fully-parallel-load-exchange-algo ckpt-fully-parallel-save-process-group
    ckpt-fully-parallel-load-process-group ckpt-assume-constant-structure
    no-ckpt-load-validate-sharding-integrity dist-ckpt-workers dist-ckpt-optim-fully-reshardable
    distrib-optim-fully-reshardable-mem-efficient exit-on-missing-checkpoint
    """
)
"""How checkpoints are saved and loaded. ``verify-integrity`` is left out, because a checkpoint
without its manifest would then count as damaged. So is ``dist-ckpt-strictness``, because it can let
weights be missing."""

_EVALUATION = _words(
    """
    eval-interval eval-iters start-eval-at-iter eval-global-batch-size eval-micro-batch-size
    """
)
"""The validation curve. These keys alone change no number of training."""

_PLACES = _words(
    """
    save load tensorboard-dir data-cache-path wandb-save-dir memory-snapshot-path config-logger-dir
    flight-recorder-dump-path result-rejected-tracker-filename object-storage-cache-path
    """
)
"""Where files go."""

_REPORTS = _words(
    """
    log-interval log-params-norm log-throughput log-progress timing-log-level timing-log-option
    tensorboard-log-interval tensorboard-queue-size log-timers-to-tensorboard
    no-log-loss-scale-to-tensorboard log-validation-ppl-to-tensorboard log-memory-to-tensorboard
    log-memory-interval log-device-memory-used log-num-zeros-in-grad no-barrier-with-level-1-timing
    log-world-size-to-tensorboard wandb-project wandb-exp-name wandb-entity logging-level log-energy
    moe-per-layer-logging log-straggler straggler-ctrlr-port straggler-minmax-count
    disable-straggler-on-startup run-workload-inspector-server no-one-logger one-logger-project
    one-logger-run-name one-logger-async app-tag-run-name app-tag-run-version profile
    profile-step-start profile-step-end use-pytorch-profiler pytorch-profiler-collect-shapes
    pytorch-profiler-collect-callstack pytorch-profiler-collect-chakra profile-ranks
    record-memory-history record-shapes nvtx-ranges
    """
)
"""What is printed, drawn, timed and profiled."""

RUN, LAYOUT, RUNS, EVALUATES, WRITES, REPORTS = (
    "what the run is",
    "how it is cut",
    "how it runs",
    "when it evaluates",
    "where it writes",
    "what it reports",
)

KINDS: Mapping[str, str] = {
    **dict.fromkeys((*MODEL_KEYS, *COMPUTING_KEYS, *TRAINING_KEYS, *OTHER_KEYS), RUN),
    **dict.fromkeys(LAYOUT_KEYS, LAYOUT),
    **dict.fromkeys((*_WORK, *_SAVING), RUNS),
    **dict.fromkeys(_EVALUATION, EVALUATES),
    **dict.fromkeys(_PLACES, WRITES),
    **dict.fromkeys(_REPORTS, REPORTS),
}
"""The kind of every key."""


def evaluation_leaves_a_trace(args: argparse.Namespace) -> bool:
    """Tell whether an evaluation changes the training after it: then its cadence decides the run.

    Evaluation draws no random number and updates no weight, moment, balance or bias. There are
    three exceptions. A router that is jittered or biased at random draws in evaluation too. Delayed
    scaling of FP8 takes its factors from the last tensors that passed through a layer, those of an
    evaluation included. ``qk-clip`` takes its largest logits from them.
    """
    is_delayed = bool(getattr(args, "fp8", None)) and args.fp8_recipe == "delayed"
    of_routers = ("moe_input_jitter_eps", "moe_router_force_biased")
    draws = (getattr(args, name, None) for name in of_routers)
    is_drawing = any(value is not None for value in draws)
    return is_delayed or is_drawing or bool(getattr(args, "qk_clip", False))
