"""Serve every other room: files, records, processes, and facts of the machine.

It imports no other room, and no torch: every command imports it, and torch takes seconds.
"""
