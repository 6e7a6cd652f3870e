"""List the keys that decide what a run is, whose kind is ``RUN`` in ``kinds.py``.

A start that changes one of them is another run. ``COMPUTING_KEYS`` stand apart, because they change
how the layers of a model are computed and not which model it is.
"""

from __future__ import annotations

MODEL_KEYS = tuple(
    """
    max-seqlen-per-dp-cp-rank no-initialization use-cpu-initialization mtp-standalone num-layers
    mtp-num-layers mtp-loss-scaling-factor mtp-use-repeated-layer mtp-detach-heads
    mtp-hybrid-override-pattern hidden-size num-attention-heads attention-backend softmax-type
    num-query-groups ffn-hidden-size kv-channels hidden-dropout attention-dropout
    fp32-residual-connection apply-residual-connection-post-layernorm norm-epsilon
    apply-layernorm-1p disable-bias-linear add-qkv-bias glu-linear-offset
    activation-func-clamp-value rotary-interleaved normalization qk-layernorm qk-l2-norm
    attention-output-gate calculate-per-token-loss multi-latent-attention
    experimental-attention-variant dsa-indexer-n-heads dsa-indexer-head-dim dsa-indexer-topk
    dsa-indexer-topk-freq dsa-indexer-skip-topk-offset dsa-indexer-loss-coeff
    dsa-indexer-use-sparse-loss dsa-kernel-backend dsa-indexer-rope-interleaved
    no-dsa-indexer-rotate-activation no-dsa-indexer-scoring-relu dsa-indexer-k-norm-epsilon
    dsa-indexer-k-norm-fp32 linear-conv-kernel-dim linear-key-head-dim linear-value-head-dim
    linear-num-key-heads linear-num-value-heads init-method-std embedding-init-method-std
    use-mup mup-width-mult mup-base-hidden-size mup-embedding-mult mup-output-mult
    mup-base-head-dim mup-attn-scale-power apply-query-key-layer-scaling
    disable-bf16-reduced-precision-matmul use-fused-weighted-squared-relu
    moe-shared-expert-intermediate-size moe-shared-expert-gate
    moe-shared-expert-glu-interleave-size moe-ffn-hidden-size moe-router-topk
    moe-router-num-groups moe-router-group-topk moe-router-pre-softmax
    moe-router-topk-scaling-factor moe-router-score-function moe-router-dtype
    moe-router-enable-expert-bias moe-router-bias-update-rate moe-router-quantile-balancing-ema
    moe-router-force-load-balancing moe-router-force-biased moe-z-loss-coeff
    moe-expert-capacity-factor moe-pad-expert-input-to-capacity moe-token-drop-policy
    moe-apply-probs-on-input moe-latent-size moe-expert-rank-capacity-factor
    no-clone-scatter-output-in-embedding mrope-section is-hybrid-model mamba-state-dim
    mamba-head-dim mamba-num-groups mamba-num-heads disable-mamba-mem-eff-path transformer-impl
    encoder-num-layers decoder-num-layers group-query-attention window-size
    window-attn-skip-freq max-position-embeddings position-embedding-type
    yarn-original-max-position-embeddings yarn-beta-fast yarn-beta-slow
    yarn-correction-range-round-to-int no-yarn-correction-range-round-to-int
    relative-attention-num-buckets relative-attention-max-distance
    use-rotary-position-embeddings rotary-base rotary-percent
    rotary-seq-len-interpolation-factor use-rope-scaling rope-scaling-factor no-rope-freq
    no-position-embedding openai-gelu squared-relu swiglu quick-geglu onnx-safe
    bert-no-binary-head untie-embeddings-and-output-weights num-experts moe-layer-freq
    moe-use-upcycling moe-router-load-balancing-type moe-aux-loss-coeff
    moe-upcycling-granularity q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim
    v-head-dim rotary-scaling-factor mscale mscale-all-dim cache-mla-latents
    mla-down-proj-fusion linear-attention-freq heterogeneous-layers-config-path
    heterogeneous-layers-config-encoded-json attention-softmax-in-fp32
    mamba-training-ssm-states-dtype
    """.split()
)
"""The model: its layers, their sizes, and how their weights begin."""

COMPUTING_KEYS = tuple(
    """
    fp16 bf16 deterministic-mode qk-clip qk-clip-alpha qk-clip-threshold fp8-format fp8-recipe
    fp8-quantizer-factory fp8-margin fp8-interval fp8-amax-history-len fp8-amax-compute-algo
    no-fp8-wgrad fp8-output-proj first-last-layers-bf16 num-layers-at-start-in-bf16
    num-layers-at-end-in-bf16 use-kitchen-attention kitchen-attention-backend fp4-format
    fp4-recipe fp4-quantizer-factory batch-invariant-mode fp4-param-gather fp8-param-gather
    te-precision-config-file
    tensor-parallel-num-weight-shards hybrid-context-parallel
    expert-tensor-parallel-num-weight-shards no-tp-comm-bulk-wgrad no-tp-comm-bulk-dgrad
    no-tp-comm-overlap-ag no-tp-comm-overlap-rs tp-comm-overlap-rs-dgrad no-tp-comm-split-ag
    no-tp-comm-split-rs cross-entropy-loss-fusion cross-entropy-fusion-impl
    overlap-moe-expert-parallel-comm delay-wgrad-compute
    overlap-dispatch-backward-with-experts-wgrad ep-overlap-early-attn-memory-release
    use-ring-exchange-p2p defer-embedding-wgrad-compute wgrad-deferral-limit
    cpu-offloading-num-layers cpu-offloading-retain-pinned-cpu-buffers flash-attention-version
    init-model-with-meta-device fused-residual-rmsnorm use-transformer-engine-op-fuser
    high-priority-a2a-comm-stream use-grouped-gemm-for-shared-expert moe-enable-routing-replay
    moe-router-padding-for-quantization moe-router-padding-for-fp8
    use-grouped-gemm-for-dense-mlp moe-grouped-gemm moe-single-grouped-weight
    moe-single-grouped-bias moe-input-jitter-eps moe-permute-fusion-into-hybridep
    moe-hybridep-pad-uneven-dispatch-inputs moe-pad-experts-for-cuda-graph-inference
    moe-layer-recompute moe-permute-fusion moe-router-fusion moe-flex-dispatcher-num-sms
    moe-deepep-num-sms moe-hybridep-num-sms moe-hybridep-num-blocks-permute
    moe-hybridep-num-blocks-unpermute moe-hybridep-num-sms-preprocessing moe-ncclep-static-shape
    moe-ncclep-zero-copy moe-mlp-glu-interleave-size enable-cuda-graph cuda-graph-warmup-steps
    external-cuda-graph cuda-graph-impl use-te-activation-func symmetric-ar-type
    mlp-chunks-for-training fine-grained-activation-offloading offload-modules
    min-offloaded-tensor-size delay-offload-until-cuda-graph delta-offload-bytes-across-pp-ranks
    activation-offload-fraction moe-paged-stash moe-paged-stash-page-size
    moe-paged-stash-buffer-size-factor-cuda moe-paged-stash-buffer-size-factor-cpu
    fine-grained-offloading-max-inflight-offloads te-rng-tracker tp-comm-overlap-cfg
    overlap-cpu-optimizer-d2h-h2d nccl-communicator-config-path
    overlap-param-gather-with-optimizer-step use-nccl-ub cuda-graph-scope cuda-graph-modules
    inference-cuda-graph-scope flash-decode nccl-all-reduce-for-prefill
    inference-fuse-tp-communication inference-disable-triton-nvls-kernels
    inference-grouped-gemm-backend inference-moe-disable-fused-quant-kernels
    inference-moe-token-dispatcher-type mlp-chunks-for-prefill inference-rng-tracker
    inference-batch-times-seqlen-threshold inference-max-requests inference-max-seq-length
    inference-dynamic-batching inference-dynamic-batching-buffer-size-gb
    inference-dynamic-batching-paused-buffer-size-gb
    inference-dynamic-batching-mamba-memory-ratio inference-dynamic-batching-block-size
    inference-dynamic-batching-max-requests inference-dynamic-batching-max-tokens
    inference-dynamic-batching-num-cuda-graphs
    inference-dynamic-batching-track-paused-request-events
    inference-dynamic-batching-track-generated-token-events inference-cuda-graph-all-prefills
    inference-cuda-graph-max-tokens inference-dynamic-batching-unified-memory-level
    inference-dynamic-batching-prefix-caching
    inference-dynamic-batching-prefix-caching-eviction-policy
    inference-dynamic-batching-prefix-caching-coordinator-policy
    inference-dynamic-batching-prefix-caching-routing-alpha
    inference-dynamic-batching-prefix-caching-mamba-gb
    inference-dynamic-batching-cuda-graph-mixed-prefill-count
    inference-dynamic-batching-cuda-graph-sizing-distribution
    inference-dynamic-batching-sampling-backend inference-dynamic-batching-async-sched-mode
    inference-dynamic-batching-logprobs-mode inference-logging-step-interval
    inference-text-gen-server-logging inference-wandb-logging inference-coordinator-port
    inference-use-synchronous-zmq-collectives inference-disable-ep-consensus inference-shards
    log-max-attention-logit moe-routing-trace-path moe-routing-trace-max-training-iters
    moe-routing-trace-capture-logits moe-routing-trace-capture-hidden-states
    moe-routing-trace-dump-weights
    """.split()
)
"""How the layers of a model are computed: precision, kernels, overlaps, graphs, offloading,
inference and traces. The same weights may be computed with other values of these."""

TRAINING_KEYS = tuple(
    """
    gpu-sniff-test-interval weight-decay apply-wd-to-qk-layernorm clip-grad adam-beta1
    adam-beta2 adam-eps sgd-momentum muon-momentum muon-no-split-qkv muon-nesterov
    muon-scale-mode muon-fp32-matmul-prec muon-coefficient-type muon-num-ns-steps muon-tp-mode
    muon-extra-scale-factor muon-scalar-optimizer lion-beta1 lion-beta2
    no-weight-decay-cond-type lr-decay-style lr-wsd-decay-style lr-decay-iters lr-decay-samples
    lr-wsd-decay-iters lr-wsd-decay-samples lr-warmup-fraction lr-warmup-iters lr-warmup-samples
    lr-warmup-init override-opt_param-scheduler use-checkpoint-opt_param-scheduler
    start-weight-decay end-weight-decay weight-decay-incr-style lr warmup min-lr decoupled-lr
    decoupled-min-lr freeze-all-layers seed data-parallel-random-init init-method-xavier-uniform
    enable-experimental spec hybrid-layer-pattern hybrid-override-pattern yaml-cfg
    use-precision-aware-optimizer main-grads-dtype main-params-dtype exp-avg-dtype
    exp-avg-sq-dtype megatron-fsdp-main-params-dtype megatron-fsdp-main-grads-dtype
    megatron-fsdp-grad-comm-dtype megatron-fsdp-enable-fine-grained-param-gather
    megatron-fsdp-max-pool-double-buffer fsdp-db-use-persist-buf-on-alloc-fail micro-batch-size
    global-batch-size rampup-batch-size step-batch-size-schedule decrease-batch-size-if-needed
    train-iters train-samples iterations-to-skip batch-size no-check-for-nan-in-loss-and-grad
    checkpoint-activations no-masked-softmax-fusion no-bias-gelu-fusion no-bias-swiglu-fusion
    no-bias-dropout-fusion no-rope-fusion rope-type use-flash-attn optimizer
    optimizer-cpu-offload optimizer-cuda-graph optimizer-offload-fraction
    use-torch-optimizer-for-cpu-offload dump-param-to-param-group-map dataloader-type
    no-persist-layer-norm no-gradient-accumulation-fusion use-mcore-models distributed-backend
    lazy-mpu-init use-megatron-fsdp use-torch-fsdp2 disable-gloo-process-groups use-sharp
    sharp-enabled-group disable-jit-fuser model-parallel-size
    ddp-reduce-scatter-with-fp32-accumulation
    ddp-param-name-patterns-for-fp32-local-accumulation ddp-average-in-collective
    use-distributed-optimizer no-use-layer-wise-param-layout disable-symmetric-registration
    fsdp-manual-registration create-all-gather-group data-parallel-sharding-strategy
    outer-dp-sharding-strategy no-gradient-reduce-div-fusion fsdp-double-buffer
    suggested-communication-unit-size keep-fp8-transpose-cache enable-full-sharding-in-hsdp
    torch-fsdp2-no-reshard-after-forward fake-process-group skip-train test-mode full-validation
    multiple-validation-sets validation-set-names error-injection-rate error-injection-type
    fault-injector-ranks fault-injector-num-ranks fault-injector-fault-types
    fault-injector-fault-probabilities fault-injector-fault-delay
    fault-injector-delay-start-iteration fault-injector-mtti-seconds
    fault-injector-offset-seconds fault-injector-seed inprocess-restart inprocess-granularity
    inprocess-active-world-size inprocess-empty-cuda-cache data-path phase-transition-iterations
    split train-data-path valid-data-path test-data-path data-args-path per-split-data-args-path
    per-dataset-sequences-path mock-data seq-length encoder-seq-length decoder-seq-length
    sample-rate mask-prob short-seq-prob reset-position-ids reset-attention-mask
    dataloader-inter-document-masking eod-mask-loss no-create-attention-mask-in-dataloader
    mid-level-dataset-surplus allow-ambiguous-pad-tokens fim-data fim-rate fim-spm-rate
    fim-split-sample fim-fragment-rate fim-no-prefix fim-prefix-token fim-middle-token
    fim-suffix-token fim-pad-token fim-eod-token vocab-size padded-vocab-size no-pad-vocab-size
    vocab-file merge-file vocab-extra-ids tokenizer-type tokenizer-model tokenizer-metadata
    tokenizer-special-tokens tiktoken-pattern tiktoken-num-special-tokens
    tokenizer-sentencepiece-legacy no-tokenizer-sentencepiece-ignore-extra-whitespaces
    tokenizer-hf-no-use-fast tokenizer-hf-no-include-special-tokens trust-remote-code
    null-tokenizer-eod-id null-tokenizer-pad-id chat-template save-params-interval
    save-activations-interval save-tokens-per-expert-interval save-wgrads-interval
    save-dgrads-interval load-main-params-from-ckpt non-persistent-save-interval
    non-persistent-ckpt-type non-persistent-global-ckpt-dir non-persistent-local-ckpt-dir
    non-persistent-local-ckpt-algo finetune pretrained-checkpoint ckpt-step use-checkpoint-args
    use-mp-args-from-checkpoint-args no-use-tokenizer-model-from-checkpoint-args ckpt-format
    auto-detect-ckpt-format ckpt-convert-format ckpt-convert-save
    ckpt-convert-update-legacy-dist-opt-format no-strict-fsdp-dtensor-load dist-ckpt-strictness
    dist-ckpt-save-pre-mcore-014 replication replication-jump replication-factor
    verify-integrity no-stream-ckpt-dequant no-save-optim no-save-rng no-load-optim no-load-rng
    override-ckpt-iteration use-dist-ckpt dist-ckpt-format grad-reduce-in-bf16 loss-scale
    initial-loss-scale min-loss-scale loss-scale-window hysteresis
    accumulate-allreduce-grads-in-fp32 fp16-lm-cross-entropy reuse-grad-buf-for-mxfp8-param-ag
    """.split()
)
"""The optimizer, the schedule, the text, and the rest of the training loop."""

OTHER_KEYS = tuple(
    """
    perform-rl-step rl-prompts-per-eval grpo-prompts-per-step grpo-group-size rl-generation-lag
    rl-submission-granularity rl-consumption-granularity grpo-iterations grpo-clamp-eps-lower
    grpo-clamp-eps-upper grpo-kl-beta grpo-entropy-term-weight
    grpo-filter-groups-with-same-reward langrl-env-config rl-default-temperature
    rl-default-top-p rl-default-top-k rl-offload-optimizer-during-inference
    rl-kv-cache-management-mode rl-persist-cuda-graphs rl-partial-rollouts
    rl-inference-logprobs-is-correction rl-importance-sampling-truncation-coef
    rl-use-sequence-packing rl-sequence-packing-max-sequences-per-bin rl-sequence-packing-algo
    rl-training-cuda-graphs rl-inference-tensor-model-parallel-size
    rl-inference-pipeline-model-parallel-size rl-inference-expert-model-parallel-size
    rl-inference-expert-tensor-model-parallel-size rl-inference-model-unified-memory-level
    rl-offload-inference-model-weights-when-idle refit-method rl-verify-model-weights-swap
    rl-skip-bos-token rl-profile rl-profile-dir rl-inference-parsers ict-head-size
    biencoder-projection-dim biencoder-shared-query-context-model ict-load bert-load
    titles-data-path query-in-block-prob use-one-sent-docs evidence-data-path
    retriever-report-topk-accuracies retriever-score-scaling block-data-path embedding-path
    indexer-batch-size indexer-log-interval num-classes img-h img-w num-channels patch-dim
    classes-fraction data-per-class-fraction no-data-sharding head-lr-mult vision-pretraining
    vision-pretraining-type vision-backbone-type swin-backbone-type mask-type mask-factor
    iter-per-epoch dino-local-img-size dino-local-crops-number dino-head-hidden-size
    dino-bottleneck-size dino-freeze-last-layer dino-norm-last-layer dino-warmup-teacher-temp
    dino-teacher-temp dino-warmup-teacher-temp-epochs logits-save-top-k logits-save-top-p
    logits-save-top-p-min-k logits-save-dir logits-save-dtype logits-load-dir
    logits-load-decode-threads logits-load-prefetch-factor logits-load-msc-prefetch-depth
    logits-load-kd-loss-alpha logits-load-ignore-errors max-tokens-to-oom output-bert-embeddings
    bert-embedder-type use-legacy-static-engine decode-only-cuda-graphs enable-chunked-prefill
    num-speculative-tokens use-same-sampling-seed-across-dp-ranks
    mamba-inference-conv-states-dtype mamba-inference-ssm-states-dtype enable-msc disable-msc
    sft sft-tokenizer-prompt-format
    """.split()
)
"""Keys of other tasks. Nobody has shown that they change no number of training."""
