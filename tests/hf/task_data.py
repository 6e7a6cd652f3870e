"""Invented items in the form of each data set of the paper, as `evaluate-data` writes them."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from tst_megatron.hf.evaluate.definitions import TaskData, data_of, task_names

THINGS = "lamp river stone cloud garden hammer needle orchard pebble quilt rope saddle".split()
NUM_ITEMS = 6


def items(data_set: str, subject: str | None, number: int) -> list[dict[str, Any]]:
    """Items of a data set, with every field its task reads; other items for each subject."""
    make = {
        "allenai/ai2_arc": _arc,
        "aps/super_glue": _boolq,
        "Rowan/hellaswag": _hellaswag,
        "cais/mmlu": _mmlu,
        "allenai/openbookqa": _openbookqa,
        "baber/piqa": _piqa,
        "allenai/winogrande": _winogrande,
    }[data_set]
    random_ = random.Random(f"{data_set} {subject}")
    return [make(random_, index) for index in range(number)]


def _some(random_: random.Random, number: int) -> list[str]:
    """Answers of different lengths, so that acc and acc_norm can differ."""
    return [" ".join(random_.sample(THINGS, random_.randint(1, 4))) for _ in range(number)]


def _choices(random_: random.Random) -> dict[str, list[str]]:
    return {"text": _some(random_, 4), "label": ["A", "B", "C", "D"]}


def _arc(random_: random.Random, index: int) -> dict[str, Any]:
    question = f"Which of these is near a {random_.choice(THINGS)}?"
    choices, answer = _choices(random_), random_.choice("ABCD")
    return {"id": f"made_{index}", "question": question, "choices": choices, "answerKey": answer}


def _boolq(random_: random.Random, index: int) -> dict[str, Any]:
    first, second = random_.sample(THINGS, 2)
    passage = f"A {first} was left beside the {second} in spring."
    question = f"was the {second} beside a {first}"
    return {"question": question, "passage": passage, "idx": index, "label": random_.randint(0, 1)}


def _hellaswag(random_: random.Random, index: int) -> dict[str, Any]:
    start, then = f"A man lifts a {random_.choice(THINGS)}.", "he"
    return {
        **{"ind": index, "activity_label": "Moving things", "ctx_a": start, "ctx_b": then},
        **{"ctx": f"{start} {then}", "endings": [f"takes [title] {x}." for x in _some(random_, 4)]},
        **{"split": "val", "split_type": "indomain", "label": str(random_.randint(0, 3))},
    }


def _mmlu(random_: random.Random, index: int) -> dict[str, Any]:
    question = f" What lies under the {random_.choice(THINGS)}? "
    choices, answer = _some(random_, 4), random_.randint(0, 3)
    return {"question": question, "subject": "made", "choices": choices, "answer": answer}


def _openbookqa(random_: random.Random, index: int) -> dict[str, Any]:
    stem = f"A {random_.choice(THINGS)} is used for"
    choices, answer = _choices(random_), random_.choice("ABCD")
    return {"id": str(index), "question_stem": stem, "choices": choices, "answerKey": answer}


def _piqa(random_: random.Random, index: int) -> dict[str, Any]:
    first, second = _some(random_, 2)
    goal = f"How do I mend a {random_.choice(THINGS)}?"
    return {"goal": goal, "sol1": first, "sol2": second, "label": random_.randint(0, 1)}


def _winogrande(random_: random.Random, index: int) -> dict[str, Any]:
    first, second = random_.sample(THINGS, 2)
    sentence = f"The {first} broke the {second} because the _ was heavy."
    answer = random_.choice("12")
    return {"sentence": sentence, "option1": first, "option2": second, "answer": answer}


def write_task_data(folder: Path, tasks: str = "paper", *, number: int = NUM_ITEMS) -> None:
    """Every file that tasks read, and the manifest."""
    files = {}
    for task in data_of(task_names(tasks)):
        for name in task.files.values():
            lines = items(task.data.path, task.data.name, 2 if "mmlu" in name else number)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            files[name] = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def read(folder: Path, task: TaskData, split: str) -> list[dict[str, Any]]:
    """The items of one file."""
    return [json.loads(line) for line in (folder / task.files[split]).read_text().splitlines()]
