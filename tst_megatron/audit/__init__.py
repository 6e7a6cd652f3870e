"""Ask what the averaging of tokens cost a model: paired probes of two or more models at equal loss.

A *passage* is a sequence of tokens that a model reads at once. A *suite* is a list of passages
that is scored once per model. A *probe* turns the scores of one suite into one number, and says
what that number is for. ``audit.py`` runs all of it, and is its table of contents.
"""
