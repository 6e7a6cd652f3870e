"""The evidence: which runs there are, their text, their training, their records and the pages."""
