"""Find the files of a text, and read the documents in them."""
