from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from tst_megatron.data.encode import Encoder, encode_batch, is_held_out
from tst_megatron.data.jsonl import LineBatch

BAD_LINES = {
    b"not json": r"line 3: not JSON in UTF-8 \(.*Write one JSON object per line",
    b"\xff\xfe": r"line 3: not JSON in UTF-8 \(.*decode byte",
    b'["text"]': r"line 3: no object, a JSON object with the key 'text'.*text_key",
    b'{"body": "x", "a": 1}': r"line 3: keys \['a', 'body'\], a JSON object with the key 'text'",
    b'{"text": 5}': r"line 3: 'text' is int, text must be a string.*Convert it",
    b'{"text": "\\ud800"}': r"line 3: 'text' holds half a surrogate pair.*Repair or remove",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_is_named(processor: SentencePieceProcessor, line: bytes) -> None:
    batch = LineBatch("source.jsonl", 1, [b'{"text": "fine"}', b"", line])
    encoder = Encoder(Path("unused"), "text", 0.5)
    with pytest.raises(ValueError, match=r"source\.jsonl, " + BAD_LINES[line]):
        encode_batch(batch, encoder, processor)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_held_out_share_is_near_the_fraction(fraction: float) -> None:
    share = sum(is_held_out(f"text {number}", fraction) for number in range(4000)) / 4000
    assert share == pytest.approx(fraction, abs=0.03)


def test_held_out_documents_stay_held_out_at_a_larger_fraction() -> None:
    texts = [f"text {number}" for number in range(1000)]
    assert all(is_held_out(text, 0.2) for text in texts if is_held_out(text, 0.1))
