"""Recorded runs as they lie on disk, read into ``results.RecordedRun``: ours and other tools'."""
