"""The tokenizer beside an exported model: found, converted to Hugging Face files, and copied."""
