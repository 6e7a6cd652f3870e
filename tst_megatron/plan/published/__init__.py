"""Numbers that others have published, each with its source, and the reader that checks them."""
