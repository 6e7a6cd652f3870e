"""Every unstable signature of Megatron that this project relies on, pinned.

A Megatron upgrade fails here first; ``tst_megatron/megatron/`` is where to mend it.
"""

import importlib.metadata
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from megatron.core.dist_checkpointing import validation
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.common import utils as plan_nodes
from megatron.core.optimizer.optimizer import param_group_identifier_keys
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import schedules
from megatron.core.rerun_state_machine import RerunState, RerunStateMachine
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader

from tst_megatron.checkpoint import folder
from tst_megatron.checkpoint.record import MANIFEST
from tst_megatron.megatron import names, optimizer, ranks
from tst_megatron.megatron import names as megatron_names
from tst_megatron.megatron.cpu import host
from tst_megatron.megatron.repairs import checkpoint_processes, no_cuda
from tst_megatron.megatron.repairs.apply import repair_wheel
from tst_megatron.schedule import Phase
from tst_megatron.training import step
from tst_megatron.training.run import endings

CALLER = names.async_utils.PersistentAsyncCaller


MODEL_INPUTS = (
    *("self", "input_ids", "position_ids", "attention_mask"),
    *("labels", "loss_mask"),
)


def parameters(function):
    function = getattr(function, "tst_megatron_original", function)
    return list(inspect.signature(function).parameters)


def test_version_is_the_tested_one():
    assert importlib.metadata.version("megatron-core") == megatron_names.TESTED_MEGATRON


@pytest.mark.parametrize(
    ("function", "relied_on"),
    [
        (
            names.training.pretrain,
            [
                "cfg_container",
                "train_valid_test_dataset_provider",
                "model_type",
                "forward_step_func",
            ],
        ),
        (
            names.training.training_log,
            ["loss_dict", "total_loss_dict", "learning_rate", "iteration"],
        ),
        (names.training.get_canonical_lr_for_logging, ["param_groups"]),
        (names.global_vars._set_wandb_writer, ["args"]),
        (names.training.evaluate_and_print_results, ["prefix", "iteration"]),
        (names.training.train_step, ["data_iterator", "model", "optimizer"]),
        (names.training.force_param_sync, ["model_chunks", "optimizer"]),
        (names.training.should_disable_forward_pre_hook, ["args"]),
        (names.training.save_checkpoint, ["iteration", "model", "non_persistent_ckpt"]),
        (names.training.load_checkpoint, ["ddp_model", "optimizer", "opt_param_scheduler"]),
        (names.training.maybe_finalize_async_save, ["blocking", "terminate"]),
        (names.training.checkpoint_and_decide_exit, ["model", "iteration"]),
        (names.training.num_floating_point_operations, ["args", "batch_size"]),
        (names.training.initialize_megatron, ["allow_no_cuda"]),
        (names.arguments.parse_args, ["extra_args_provider", "ignore_unknown_args"]),
        (names.arguments.validate_args, ["args", "defaults"]),
        (names.gpt_config_from_args, ["args", "model_config_cls"]),
        (names.pretrain_cfg_container_from_args, ["args", "model_cfg"]),
        (megatron_names.GPTModelBuilder.build_model, ["pg_collection", "vp_stage"]),
        (
            megatron_names.LanguageModule.compute_language_model_loss,
            ["self", "labels", "logits"],
        ),
        (
            megatron_names.GPTModel.forward,
            [*MODEL_INPUTS, "output_processor"],
        ),
        (megatron_names.GPTModel.build_schedule_plan, [*MODEL_INPUTS, "output_processor"]),
        (
            names.training.train_step,
            [
                *("forward_step_func", "data_iterator", "model", "optimizer"),
                *("opt_param_scheduler", "config", "forward_backward_func", "iteration"),
            ],
        ),
        (
            names.training.setup_model_and_optimizer,
            ["model_type", "cfg_container", "pg_collection"],
        ),
        (names.fused_vocab_parallel_cross_entropy, ["vocab_parallel_logits", "target", "tp_group"]),
        (
            names.MegatronPretrainingSampler.__init__,
            [
                *("total_samples", "consumed_samples", "micro_batch_size"),
                *("data_parallel_rank", "data_parallel_size"),
            ],
        ),
        (names.get_batch_on_this_cp_rank, ["batch", "is_hybrid_cp", "cp_group"]),
        (names.mtp_on_this_rank, ["layout", "mtp_num_layers", "ignore_virtual", "vp_stage"]),
        (
            names.PipelineParallelLayerLayout.from_str,
            ["layout", "pipeline_model_parallel_size"],
        ),
        (megatron_names.VocabParallelEmbedding.forward, ["self", "input_"]),
        (
            names.tensor_parallel_layers._initialize_affine_weight_cpu,
            ["weight", "init_method", "skip_set_tensor_parallel_attributes"],
        ),
        (names.GPTModel.setup_embeddings_and_output_layer, ["self"]),
        (names.Router.reset_parameters, ["self"]),
        (names.SequentialMLP.__init__, ["self", "num_local_experts", "pg_collection"]),
        (megatron_names.reduce_from_tensor_model_parallel_region, ["input_", "group"]),
        (megatron_names.reduce_scatter_to_sequence_parallel_region, ["input_", "group"]),
        (
            names.distrib_optimizer.DistributedOptimizer.sharded_state_dict,
            ["self", "model_sharded_state_dict", "is_loading"],
        ),
        (names.distrib_optimizer.DistributedOptimizer.load_state_dict, ["self", "state_dict"]),
        (
            names.distrib_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states,
            ["self", "model_param", "tensors"],
        ),
        (
            names.distrib_optimizer.DistributedOptimizer._get_main_param_and_optimizer_states,
            ["self", "model_param"],
        ),
        (
            names.distrib_optimizer.DistributedOptimizer._get_model_param_range_map,
            ["self", "param"],
        ),
        (megatron_names.GPTModelBuilder.__init__, ["self", "model_config"]),
        (CALLER.schedule_async_call, ["self", "async_req"]),
        (CALLER.is_current_async_call_done, ["self", "blocking", "no_dist"]),
        (CALLER._get_process, ["rank", "mp_mode"]),
        (CALLER.close, ["self", "abort"]),
        (checkpoint_processes._loop_of_worker, ["rank", "queue", "preload_q", "comp_q"]),
        (
            names.async_utils.AsyncCallsQueue.maybe_finalize_async_calls,
            ["self", "blocking", "no_dist"],
        ),
        (RerunStateMachine.validate_result, ["result", "rejection_func", "message", "fatal"]),
        (RerunStateMachine.is_unexpectedly_large, ["result", "threshold", "context"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signature_has_what_is_relied_on(function, relied_on):
    assert set(relied_on) <= set(parameters(function))


def test_output_processor_is_given_what_the_linear_loss_takes():
    source = inspect.getsource(megatron_names.GPTModel._postprocess)
    call = source[source.index("return output_processor(") :]
    for name in ("hidden_states", "output_layer", "output_weight", "labels", "config"):
        assert f"{name}=" in call[: call.index(")\n\n")]


def test_gradients_are_told_as_the_kernels_tell_them():
    """The hook skips a gradient that is in the buffer, and adds the dummy of a shared table."""
    hook = inspect.getsource(DistributedDataParallel._make_backward_post_hook)
    assert "not param.grad_added_to_main_grad or getattr(param, 'zero_out_wgrad', False)" in (
        " ".join(hook.split())
    )
    assert "param.main_grad.add_(param.grad.data)" in hook


def test_embedding_has_what_the_bag_embedding_reads():
    source = inspect.getsource(megatron_names.VocabParallelEmbedding)
    for name in ("self.weight", "vocab_start_index", "reduce_scatter_embeddings", "self.tp_group"):
        assert name in source


def test_tables_are_drawn_anew_as_the_model_initialises_them():
    source = "".join(inspect.getsource(megatron_names.GPTModel.__init__).split())
    assert (
        "init_method=(config.embedding_init_methodifconfig.use_mup"
        "andnotself.share_embeddings_and_output_weightselseconfig.init_method)" in source
    )
    source = inspect.getsource(names.training.train)
    # What a step is counted by is set before it.
    assert source.index("args.curr_iteration = iteration") < source.index("= train_step(")


def test_tracker_file_and_folders_are_named_as_we_read_and_write_them():
    from megatron.training import checkpointing

    assert checkpointing.get_checkpoint_tracker_filename("c") == f"c/{folder.TRACKER}"
    assert checkpointing.get_checkpoint_name("c", 12, return_base_dir=True) == str(
        folder.checkpoint_of(Path("c"), 12)
    )
    assert validation.INTEGRITY_FNAME == MANIFEST


def test_a_step_is_saved_by_interval_and_saved_once_before_an_exit():
    """``saving.force`` relies on it: the interval in the arguments decides, and nothing else."""
    decide = names.training.checkpoint_and_decide_exit
    source = inspect.getsource(getattr(decide, "tst_megatron_original", decide))
    assert "iteration % args.save_interval == 0" in source
    assert "if args.save and not saved_checkpoint:" in source


def test_asynchronous_save_has_what_its_repairs_read():
    for name in ("_persistent_process", "_persistent_queue", "_persistent_preload_q"):
        assert hasattr(CALLER, name)
    assert "_persistent_comp_q.get_nowait()" in inspect.getsource(
        CALLER.is_current_async_call_done.tst_megatron_original
    )
    # What is copied before training goes on is both the arguments and what is staged of them.
    source = inspect.getsource(FileSystemWriterAsync.get_save_function_and_args)
    assert "partial(self.preload_tensors, self.write_buckets, True)" in source
    assert "[torch.distributed.get_rank(), self.write_buckets, self.results_queue]" in source


def test_stop_is_asked_for_after_each_step_and_each_batch_of_an_evaluation():
    for function in (names.training.evaluate, names.training.checkpoint_and_decide_exit):
        assert "train_time > args.exit_duration_in_mins" in inspect.getsource(function)
    source = inspect.getsource(names.training.build_train_valid_test_data_loaders)
    built = source.index("build_train_valid_test_datasets(")
    assert built < source.index("build_pretraining_data_loader(valid_d, args.consumed_valid")


def test_refused_results_end_in_states_that_have_a_meaning():
    ending = inspect.getsource(RerunStateMachine.should_checkpoint_and_exit)
    states = [state.name for state in RerunState if f"RerunState.{state.name}:" in ending]
    assert sorted(states) == sorted(endings._MEANING_OF_REFUSAL)
    machine = RerunStateMachine()
    assert machine.failed_validation_call is None
    assert machine.rerun_requested is False
    assert machine.first_iteration_complete is False


def test_a_schedule_plan_embeds_and_computes_the_loss_through_the_model():
    """The exchanged embedding and loss are reached by the plan because its nodes ask the model."""
    assert "self.model._preprocess(" in inspect.getsource(plan_nodes.PreProcessNode.forward_impl)
    assert "self.model._postprocess(" in inspect.getsource(plan_nodes.PostProcessNode.forward_impl)
    source = inspect.getsource(megatron_names.GPTModel._postprocess)
    assert "self.compute_language_model_loss(labels, logits)" in source


def test_a_loss_with_its_count_is_not_multiplied_by_the_context_parallel_size():
    """By reading: only the branch of a loss function that returns no count knows that size."""
    source = inspect.getsource(schedules.forward_step_calc_loss)
    counted, plain = source.split("if len(outputs) == 3:")[1].split("assert len(outputs) == 2")
    assert "output_tensor /= torch.clamp(num_tokens, min=1)" in counted
    assert "cp_group_size" not in counted
    assert "output_tensor *= cp_group_size" in plain
    source = inspect.getsource(
        getattr(names.training.train_step, "tst_megatron_original", None)
        or names.training.train_step
    )
    assert "torch.distributed.all_reduce(val, group=dp_cp_group)" in source


def test_a_stage_with_heads_holds_a_batch_wherever_a_layout_puts_it(monkeypatch):
    state = names.parallel_state
    args = SimpleNamespace(
        pipeline_model_parallel_layout="Et|t|m|L", pipeline_model_parallel_size=2, mtp_num_layers=1
    )
    monkeypatch.setattr(names, "get_args", lambda: args)
    monkeypatch.setattr(state, "_VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE", 2)
    monkeypatch.setattr(state, "get_pipeline_model_parallel_world_size", lambda: 2)

    def holders():
        found = []
        for rank in range(2):
            monkeypatch.setattr(state, "get_pipeline_model_parallel_rank", lambda rank=rank: rank)
            found += [ranks.holds_a_batch(vp_stage) for vp_stage in range(2)]
        return found

    # By rank, then by virtual stage: Et and m on the first, t and L on the second.
    assert holders() == [True, True, False, True]
    args.mtp_num_layers, args.pipeline_model_parallel_layout = None, None
    assert holders() == [True, False, False, True]


def test_heads_are_not_on_while_bags_are_read():
    bags = Phase(bag_size=4, first_step=0, num_steps=1)
    with pytest.raises(AssertionError, match="multi-token prediction of bags"):
        step._require_no_heads(bags, 1)
    step._require_no_heads(bags, None)
    step._require_no_heads(Phase(bag_size=1, first_step=0, num_steps=1), 1)


def test_workarounds_are_put_in_place_once():
    before = names.training.initialize_megatron
    host.install()
    repair_wheel()
    no_cuda.allow_no_cuda()
    assert names.training.initialize_megatron is before


def test_every_fake_says_who_needs_it_and_what_it_hides():
    targets = [fake.target for fake in host.FAKES]
    assert len(set(targets)) == len(targets)
    assert all(fake.needed_by and fake.hides for fake in host.FAKES)


def test_host_refuses_a_gpu_unless_told(monkeypatch):
    monkeypatch.setattr(host._installed, "mode", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(RuntimeError, match="this machine has a GPU"):
        host.install()


def test_host_refuses_to_come_after_megatron(monkeypatch):
    monkeypatch.setattr(host._installed, "mode", None)
    with pytest.raises(RuntimeError, match="before Megatron is imported"):
        host.install()


def test_worker_of_asynchronous_saves_ends_with_its_rank():
    """On every host the loop that is started is ours, by a name that a new process can import."""
    assert CALLER.async_loop is host._checkpoint_worker
    worker = checkpoint_processes.checkpoint_worker
    assert worker.__module__ == "tst_megatron.megatron.repairs.checkpoint_processes"
    assert "die_with_parent()" in inspect.getsource(worker)
    assert "    checkpoint_worker(*args)" in inspect.getsource(host._checkpoint_worker)


def test_checkpoints_are_read_in_the_places_that_are_replaced():
    """Upstream unpickles there without a look; each line of ``reading.py`` belongs to one."""
    from megatron.core.dist_checkpointing.strategies import (
        cached_metadata_filesystem_reader as cached,
    )
    from megatron.core.dist_checkpointing.strategies import torch as strategies

    def source(function):
        return inspect.getsource(function.tst_megatron_original)

    assert "pickle.load(metadata_file)" in source(FileSystemReader.read_metadata)
    assert "planner.load_bytes(req, read_bytes)" in source(FileSystemReader.read_data)
    assert "weights_only=False" in source(DefaultLoadPlanner.load_bytes)
    assert source(names.dist_common.load_common) == source(names.dist_serialization.load_common)
    assert "config_dict = json.load(f)" in source(names.dist_core.maybe_load_config)
    # All other readers of torch_dist ask these.
    assert "super().read_metadata()" in inspect.getsource(cached)
    assert "return FileSystemReader(checkpoint_dir)" in inspect.getsource(
        strategies._get_filesystem_reader
    )
    for planner in (strategies.MCoreLoadPlanner, DefaultLoadPlanner):
        assert planner.load_bytes is DefaultLoadPlanner.load_bytes
    for reader in (cached.CachedMetadataFileSystemReader, FileSystemReader):
        assert reader.read_data is FileSystemReader.read_data


def test_a_load_reads_where_all_ranks_agree():
    """Each rank reads alone, so a failure of one is known to no other."""
    from megatron.training import checkpointing

    strategy = inspect.getsource(
        getattr(
            names.TorchDistLoadShardedStrategy.load,
            "tst_megatron_original",
            names.TorchDistLoadShardedStrategy.load,
        )
    )
    assert "no_dist=True" in strategy
    source = inspect.getsource(checkpointing._load_global_dist_base_checkpoint)
    assert "dist_checkpointing.load_common_state_dict(checkpoint_name)" in source
    source = inspect.getsource(names.dist_serialization.load)
    assert source.index("load_common_state_dict(") < source.index("sharded_strategy.load(")
    source = inspect.getsource(names.dist_validation.verify_integrity_manifest)
    assert "except CheckpointingException as exc:" in source


def test_parameter_groups_are_found_by_their_rates_and_the_scheduler_uses_those():
    """So a branch gives saved groups its own rates, and lets the scheduler take its own values."""
    from megatron.training import checkpointing

    found_by = {*optimizer._RATES, *optimizer._OTHER_NAMES_OF_A_GROUP, "is_expert_parallel"}
    assert set(param_group_identifier_keys) == found_by
    for rate in optimizer._RATES:
        assert f"param_group.get('{rate}', self.{rate})" in inspect.getsource(
            OptimizerParamScheduler.get_lr
        )
    source = inspect.getsource(OptimizerParamScheduler._check_and_set)
    assert "if self.override_opt_param_scheduler:" in source
    source = inspect.getsource(checkpointing.load_checkpoint)
    loads = "optimizer.load_state_dict(state_dict['optimizer'])"
    schedules_again = "opt_param_scheduler.load_state_dict(state_dict['opt_param_scheduler'])"
    assert source.index(loads) < source.index(schedules_again)


def test_megatron_is_imported_without_what_it_does_not_use():
    """Most of a start's time was that of these; see ``names.without_modelopt``."""
    code = (
        "from tst_megatron.megatron.cpu import host\nhost.install()\nimport gc, sys\n"
        "loaded = {'modelopt', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "print(loaded, gc.get_freeze_count() > 100_000, gc.isenabled())\n"
        "import importlib.util\nprint(importlib.util.find_spec('modelopt') is not None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-2:] == ["set() True True", "True"], ended.stderr
    # When it is there, nvidia-modelopt may be used by training, and must not be hidden.
    assert importlib.util.find_spec("megatron.post_training") is None
    assert names.training.has_nvidia_modelopt is False
