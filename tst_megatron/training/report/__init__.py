"""The numbers of a run: recorded step by step, read back, drawn, and what they were made with.

``recorder`` writes ``metrics.jsonl`` while a run trains; ``metrics_file`` reads it and cuts it on
resume. ``block_losses`` collects the loss of every held-out sequence from the ranks, and
``evaluations`` writes and reads a file of them for each evaluation. ``wandb_run`` keeps the curves
of Weights & Biases in step with them. ``losses`` draws them. ``versions`` writes ``versions.json``,
and ``facts`` writes ``facts.json``, which ``facts_of_run`` gathers.
"""
