"""The numbers of a run: recorded step by step, read back, drawn, and what they were made with.

``recorder`` writes ``metrics.jsonl`` while a run trains; ``metrics_file`` reads it and cuts it on
resume. ``wandb_run`` keeps the curves of Weights & Biases in step with it. ``losses`` draws it.
``versions`` writes ``versions.json``.
"""
