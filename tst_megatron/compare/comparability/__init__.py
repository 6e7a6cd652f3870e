"""Whether losses may be compared: what runs share, by their facts, and in what they differ."""
