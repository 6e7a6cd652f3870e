"""A model folder in Hugging Face format: checked before it is read, read, and written."""
