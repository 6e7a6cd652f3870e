"""Texts that are hard for tokenizers."""

from collections.abc import Mapping

NAMED_PROBES: Mapping[str, str] = {
    "runs of spaces": "if x:    y  =  1\n        return",
    "line breaks": "one\ntwo\n\nthree\r\nfour\n",
    "tabs": "a\tb\t\tc",
    "spaces at the beginning and the end": "  a b ",
    "capital letters": "Abc DEF",
    "accents": "café naïve Ångström",
    "combining accents": "cafe\u0301 a\u0308\u0323",
    "Chinese, Japanese and Korean": "中文分词。日本語、カタカナ 한국어",
    "Cyrillic, Greek and Arabic": "Съешь ещё Ελληνικά مَرْحَبًا",
    "emoji": "🙂👍🏽👩‍👩‍👧‍👦🏳️‍🌈",
    "control and invisible characters": "a\x00b\x01c\x7fd\u200be\ufefff\u00adg",
    "wide and joined letters": "ＡＢＣ ﬁ ﬂ ™ ²",
}
"""Kinds of text by name, with a text of each."""

PROBES = (
    "",
    " ",
    "\n",
    " leading and trailing ",
    "def f(x):\n\tif x:\n\t\treturn [1, 22, 333, 4444, 12345678]  # don't\r\n\r\n",
    "I'll we've THEY'RE it's can'T x'D 'tis ''s 'ſ",
    "naïve café Ångström ﬁﬂ ＡＢＣ K Å",
    "cafe\u0301 a\u0308\u0323 o\u0302\u0301 \u0301alone e\u0301\u0301\u0301",
    "中文分词测试。日本語のテキスト、カタカナ ｶﾀｶﾅ 한국어 문장 \u1112\u1161\u11ab",
    "Съешь ещё этих мягких булок. Ελληνικά κείμενο. ქართული. Հայերեն",
    "שָׁלוֹם עוֹלָם مَرْحَبًا بِالْعَالَمِ ١٢٣ हिन्दी क्षत्रिय தமிழ் ภาษาไทย မြန်မာ ትግርኛ",
    "🙂👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪1️⃣ ☎️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𠜎𠜱",
    "".join(map(chr, range(32))) + "\x7f\x80\x85\x9f a\x00b\x00\x00c",
    "a\u00a0b\u2003c\u2028d\u2029e\u3000f\u200bg\ufeffh\u00adi\u202ej\ufffdk\uffffl\U0010fffd",
    "  a   b    c     d\n\n\ne\n \n  \n\t\n \t x\r\ry \r\n z   ",
    "½²³ⅧⅨ①②㊿ 1,234.56 −12 0x1F 1e-9 ٣٤٥٦٧٨ 〇一二三",
    "https://example.org/a_b-c?d=e&f=%20#g <b>x</b> && || != === ... ----- _____ $$$ ```",
    "a" * 3000,
    " " * 3000 + "x",
    "\n" * 500 + "\t" * 500,
    "ab" * 1000 + "中" * 1000 + "🙂" * 300 + "=" * 1000 + "7" * 1000,
    "x" + "\u0301" * 500,
)
"""Texts by which two encoders are compared."""
