"""A checkpoint of any parallel layout loads into one process on the CPU, or says why not."""

from pathlib import Path

import pytest
import torch
from hf_checkpoints import save_once, with_arguments

from tst_megatron.checkpoint.reader.open import open_checkpoint
from tst_megatron.checkpoint.reader.weights import LoadedModel, TrainedWeights, load_model, skeleton
from tst_megatron.hf.trained_model import open_gpt
from tst_megatron.megatron.cpu import host


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_once(tmp_path_factory.getbasetemp())


def load(saved: Path) -> LoadedModel:
    return load_model(TrainedWeights(open_gpt(saved / "ep2")))


def test_load_model_trained_with_gpu_settings_computes_the_same(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens_BT = torch.arange(32).reshape(2, 16)
    plain = load(saved)
    with_arguments(
        monkeypatch,
        transformer_impl="transformer_engine",
        fp8="hybrid",
        fp8_recipe="mxfp8",
        fp8_param_gather=True,
        sequence_parallel=True,
        context_parallel_size=2,
        tensor_model_parallel_size=8,
        expert_tensor_parallel_size=1,
        virtual_pipeline_model_parallel_size=2,
        pipeline_model_parallel_size=4,
        tp_comm_overlap=True,
        overlap_moe_expert_parallel_comm=True,
        delay_wgrad_compute=True,
        recompute_granularity="selective",
        recompute_modules=["moe_act"],
        moe_grouped_gemm=True,
        moe_token_dispatcher_type="flex",
        moe_flex_dispatcher_backend="hybridep",
        moe_permute_fusion=True,
        moe_router_fusion=True,
        moe_router_padding_for_quantization=True,
        cuda_graph_impl="transformer_engine",
        apply_rope_fusion=True,
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",
        use_grouped_gemm_for_dense_mlp=True,
        high_priority_a2a_comm_stream=True,
        moe_input_jitter_eps=0.01,
        use_transformer_engine_op_fuser=True,
        hidden_dropout=0.1,
    )

    from_gpu = load(saved)

    from tst_megatron.megatron.distributed_checkpoint.model import logits

    with torch.no_grad():
        expected, actual = (logits(each.model, tokens_BT) for each in (plain, from_gpu))
    assert torch.equal(expected, actual)
    assert from_gpu.args.fp8 == "hybrid"


def test_load_model_with_interleaved_gates_separates_them(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "decoder.layers.1.mlp.experts.local_experts.4.linear_fc1.weight"
    interleaved = load(saved).model.get_parameter(name)
    with_arguments(monkeypatch, moe_mlp_glu_interleave_size=8)

    separated = load(saved).model.get_parameter(name)

    from megatron.core.transformer.moe.experts import TEGroupedMLP

    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected = TEGroupedMLP._remove_glu_interleaving(inputs @ interleaved.T, 8)
    assert torch.equal(inputs @ separated.T, expected)


def test_load_model_with_interleaved_gates_of_several_ranks_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, moe_mlp_glu_interleave_size=8, expert_tensor_parallel_size=2)

    with pytest.raises(ValueError, match="order of gate rows depends on the rank"):
        load(saved)


def test_load_model_in_one_rank_of_a_job_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(saved)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)

    with pytest.raises(RuntimeError, match="belongs to a job of 2"):
        load(saved)


def test_load_model_in_process_that_uses_a_gpu_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "is_installed", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    with pytest.raises(RuntimeError, match="this process already uses a GPU"):
        load(saved)


def test_load_model_of_unknown_iteration_lists_the_known(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint of iteration 7. Iterations there: 3\."):
        load_model(TrainedWeights(open_checkpoint(saved / "ep2", iteration=7)))


def test_load_model_of_other_shapes_names_the_tensors(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, num_query_groups=2, num_layers=3, qk_layernorm=True)

    with pytest.raises(ValueError, match=r"weights are not those of its arguments: .*linear_qkv"):
        load(saved)


def test_load_model_of_cut_off_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "iter_0000003").mkdir()

    with pytest.raises(ValueError, match="not a whole torch_dist checkpoint"):
        open_checkpoint(tmp_path, iteration=3)


def test_load_model_of_hybrid_model_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, hybrid_layer_pattern="M*M*")

    with pytest.raises(ValueError, match=r"not a GPT model .*hybrid-layer-pattern is M\*M\*"):
        load(saved)


def test_norm_before_the_experts_has_another_name_in_transformer_engines_layers(
    saved: Path,
) -> None:
    opened = open_checkpoint(saved / "ep2")
    _, aliases = skeleton(opened.args, opened.content_metadata)
    assert aliases == {
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": "decoder.layers.pre_mlp_layernorm.weight"
    }
