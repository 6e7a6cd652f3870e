"""Measure the speed of what this project adds, in one process, against other ways to do it.

Functions import where a command must start at once, and where a way to compare needs Megatron or an
optional package.
"""
