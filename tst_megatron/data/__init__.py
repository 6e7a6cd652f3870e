"""Turn text into raw tokens, and tokens into the samples of a run; README.md shows the way."""
