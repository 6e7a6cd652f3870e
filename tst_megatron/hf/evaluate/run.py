"""Evaluate a model in Hugging Face format with lm-eval, and keep what the numbers depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer, load_hugging_face
from tst_megatron.hf.evaluate import requests, results
from tst_megatron.hf.evaluate.answers import write_answers
from tst_megatron.hf.evaluate.definitions import data_of, manager, task_names, write_overlay
from tst_megatron.hf.evaluate.hub import hub_problem
from tst_megatron.hf.evaluate.local_data import COMMAND, MANIFEST, check_files
from tst_megatron.hf.generate import positions
from tst_megatron.hf.model_folder.safetensors_files import INDEX
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights
from tst_megatron.hf.model_folder.whole_model import as_transformers_reads
from tst_megatron.megatron.cpu.device import find as find_device
from tst_megatron.system.files import claimed, file_sha256, write_beside

DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}
SEED = 1234
"""lm-eval's own seed for choosing the examples in a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The options of an evaluation."""

    tasks: str = "paper"
    """Names separated by commas: tasks, groups or tags of lm-eval, or ``paper``."""
    limit: int | None = None
    """Only the first items of each task; the numbers are then for a trial alone."""
    batch_size: int = 8
    """Sequences in one forward pass."""
    device: str | None = None
    """``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU if there is one."""
    dtype: str = "auto"
    """A key of ``DTYPES``; ``auto`` is what config.json says."""
    data: Path | None = None
    """Folder of task data; None lets lm-eval download."""
    special_tokens_in_text: bool = False
    """Text that spells a special token becomes its id, as in a text prepared so; else it is
    text."""


def evaluate(
    hf_dir: Path, output: Path, settings: Settings, *, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run tasks on a model and write their numbers.

    Args:
        hf_dir: a model in Hugging Face format with its tokenizer.
        output: JSON file that does not exist.
        settings: how to evaluate.
        on_progress: told each step in a short sentence.

    Returns:
        What the file holds; ``results.summary`` says what that is. The file of ``answers`` stands
        beside it.

    Raises:
        ValueError: an unknown task, missing or damaged data, an incomplete model, a tokenizer that
            is none for documents, requests that cannot be put to the model, or an output that
            exists; before the model is loaded.
        ConnectionError: no data was named and it cannot be downloaded; before anything is run.
    """
    start = time.perf_counter()
    check_output(output)
    if output.exists():
        raise ValueError(f"{output}: exists. Name another file with --output, or remove it")
    _check_model(hf_dir)
    if settings.dtype not in DTYPES:
        raise ValueError(f"--dtype {settings.dtype} is none of {', '.join(DTYPES)}")
    # lm-eval would take any GPU, or none, for a name that it does not know.
    device = find_device(settings.device)
    names = task_names(settings.tasks)
    documents = load_hugging_face(hf_dir, special_tokens_in_text=settings.special_tokens_in_text)
    if settings.data is not None:
        check_files(settings.data, data_of(names), settings.tasks)
    output.parent.mkdir(parents=True, exist_ok=True)
    with claimed(output):
        on_progress(f"loading {len(names)} tasks")
        loaded = _tasks(names, settings, on_progress)
        requests.build(loaded["tasks"].values(), settings.limit)
        requests.check(loaded["tasks"], requests.Texts(documents), positions(hf_dir))
        on_progress(f"loading {hf_dir}")
        model = _load_model(hf_dir, documents, settings, device)
        on_progress(f"evaluating {len(loaded['tasks'])} tasks, prompts and metrics of lm-eval")
        raw = _run(model, loaded, settings.limit)
        summary = results.summary(
            raw,
            names=names,
            model={"folder": str(hf_dir), **_model_facts(hf_dir, model)},
            tokenizer=_tokenizer_facts(hf_dir, model, documents),
            settings=_settings_facts(settings, model),
            seconds=time.perf_counter() - start,
        )
        # Before the result: whoever sees that finds the answers too.
        hashes = {name: task["hash"] for name, task in summary["tasks"].items()}
        write_answers(output, raw, hashes)
        write_beside(output, json.dumps(summary, indent=2) + "\n")
    on_progress(f"wrote {output}")
    return summary


def stay_offline() -> None:
    """Ask no network for the rest of this process, whatever is imported already."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    for module, name in (
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_HUB_OFFLINE"),
    ):
        # The variables are read at import.
        if module in sys.modules:
            setattr(sys.modules[module], name, True)


def _check_model(hf_dir: Path) -> None:
    if not hf_dir.is_dir():
        raise ValueError(f"{hf_dir}: no such folder. Give one that `tst-megatron export` wrote")
    problems = []
    if not (hf_dir / "config.json").is_file():
        problems.append("config.json is missing")
    elif json.loads((hf_dir / "config.json").read_text()).get("quantization_config") is not None:
        problems.append(
            "it is quantised, for runtimes that transformers is not; evaluate the export that it "
            "was made from, or serve it"
        )
    if not any(hf_dir.glob("*.safetensors")):
        problems.append("no *.safetensors file is there")
    elif (hf_dir / INDEX).is_file():
        # transformers would find that out after the tasks are loaded.
        try:
            HuggingFaceWeights(hf_dir)
        except ValueError as error:
            problems.append(str(error).removesuffix("."))
    if not any((hf_dir / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        problems.append(
            "no tokenizer is there (tokenizer.json or tokenizer_config.json); "
            "export where the run's tokenizer is"
        )
    if problems:
        raise ValueError(f"{hf_dir}: not a model that can be evaluated: {'; '.join(problems)}")


def _tasks(names: list[str], settings: Settings, on_progress: Callable[[str], None]) -> Any:
    """As ``load_tasks``; without a connection what was downloaded before, or nothing at once."""
    from huggingface_hub.errors import HfHubHTTPError

    if settings.data is not None:
        return load_tasks(names, settings.data)
    problem = hub_problem()
    if problem is not None:
        on_progress(f"{problem}, so only data that was downloaded before is read")
        stay_offline()
    try:
        return load_tasks(names, None)
    # Whatever lm-eval, `datasets` and the hub's client raise for data that is not there.
    except Exception as error:
        # OSError, and the error of the HTTP client that this version of the hub's client uses.
        if problem is None and not isinstance(error, HfHubHTTPError.__bases__):
            raise
        reason = f"is not on this machine, and {problem}" if problem else "was not downloaded"
        raise ConnectionError(
            f"the data of --tasks {settings.tasks} {reason}. Fetch it "
            f"where there is a connection ({COMMAND} FOLDER --tasks {settings.tasks}), copy the "
            f"folder here, and evaluate with --data FOLDER. ({type(error).__name__}: {error})"
        ) from error


def load_tasks(names: list[str], data: Path | None) -> Any:
    """lm-eval's tasks and groups, with their data read.

    Args:
        names: as ``task_names`` gives them.
        data: folder of task data, checked; None lets lm-eval download.
    """
    from lm_eval.tasks import TaskManager

    # It warns of each task that lacks a default and of each local data set.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if data is None:
        loaded = manager(names).load(names)
    else:
        with tempfile.TemporaryDirectory(prefix="tst-megatron-tasks-") as folder:
            write_overlay(Path(folder), names, data_of(names), data.resolve())
            loaded = TaskManager(include_path=folder, include_defaults=False).load(names)
    for task in loaded["tasks"].values():
        # As lm-eval's simple_evaluate does; the paper's tasks have no examples in their prompts.
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    results.aggregate_every_metric(loaded["groups"].values())
    return loaded


def _load_model(
    hf_dir: Path, documents: HuggingFaceTokenizer, settings: Settings, device: str
) -> Any:
    # Imports lm-eval, an optional package that takes seconds; what is wrong before needs none.
    from tst_megatron.hf.evaluate.model import DocumentModel

    with as_transformers_reads(hf_dir) as folder:
        return DocumentModel(
            documents,
            pretrained=str(folder),
            backend="causal",
            device=device,
            dtype=DTYPES[settings.dtype],
            batch_size=settings.batch_size,
            # For transformers; other weights are a pickle.
            use_safetensors=True,
        )


def _run(model: Any, loaded: Any, limit: int | None) -> Any:
    import torch
    from lm_eval.evaluator import evaluate as run_tasks

    with torch.inference_mode():
        # The samples are needed for the hash of each task.
        return run_tasks(lm=model, task_dict=loaded, limit=limit, log_samples=True)


def _model_facts(hf_dir: Path, model: Any) -> dict[str, Any]:
    text = (hf_dir / "config.json").read_bytes()
    files = sorted(hf_dir.glob("*.safetensors"))
    return {
        "config_sha256": hashlib.sha256(text).hexdigest(),
        "config": json.loads(text),
        "num_parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "weight_bytes": {file.name: file.stat().st_size for file in files},
    }


def _tokenizer_facts(hf_dir: Path, model: Any, documents: HuggingFaceTokenizer) -> dict[str, Any]:
    tokenizer = model.tokenizer
    files = [hf_dir / name for name in ("tokenizer.json", "tokenizer_config.json")]
    return {
        "class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "adds_bos": documents.facts.bos_id is not None,
        "special_tokens_in_text": documents.facts.special_tokens_in_text,
        "sha256": {file.name: file_sha256(file) for file in files if file.is_file()},
    }


def _settings_facts(settings: Settings, model: Any) -> dict[str, Any]:
    data = settings.data and {
        "folder": str(settings.data),
        "manifest_sha256": file_sha256(settings.data / MANIFEST),
    }
    return {
        "tasks": settings.tasks,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "device": str(model.device),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "max_length_tokens": model.max_length,
        "data": data or "downloaded by lm-eval",
    }
