"""Turn text into token files: in parallel, in parts that survive a kill, joined in order."""
