"""Real text in, raw tokens out: corpus, tokenizer, preparation, and the token stream."""
