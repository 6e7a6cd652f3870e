"""The text: which files it consists of, and the documents in them."""
