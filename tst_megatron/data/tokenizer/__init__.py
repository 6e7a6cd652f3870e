"""Tokenizers: what a document becomes, whichever library makes it."""
