"""What lm-eval feeds models for a text; run by test_same_ids.py, without the CPU host.

Usage: fed_ids.py CONTEXT CONTINUATION HF_DIR...; prints a JSON list of ids for each folder: what
the model reads and, behind it, the last token that is scored.
"""

import json
import sys
from pathlib import Path

from lm_eval.api.instance import Instance

from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf.evaluate.model import DocumentModel


def fed(folder: Path, context: str, continuation: str) -> list[int]:
    """Ids of one context and continuation, as they reach the model."""
    model = DocumentModel(
        load_hugging_face(folder),
        pretrained=str(folder),
        backend="causal",
        device="cpu",
        batch_size=1,
    )
    read, scored = [], []
    call, score = model._model_call, model._loglikelihood_tokens
    model._model_call = lambda tokens: read.append(tokens[0].tolist()) or call(tokens)
    model._loglikelihood_tokens = lambda requests, **more: (
        scored.extend(requests) or score(requests, **more)
    )
    asked = [Instance("loglikelihood", {}, (context, continuation), 0)]
    model.loglikelihood(asked, disable_tqdm=True)
    ((_, _, after),) = scored
    return [*read[0], after[-1]]


if __name__ == "__main__":
    context, continuation, *folders = sys.argv[1:]
    print(json.dumps([fed(Path(folder), context, continuation) for folder in folders]))
