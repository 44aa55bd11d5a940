"""Mutated files for everything that the package reads: none may end in a traceback, or take memory or time on end.

`python -m tests.fuzz --help` runs it for as long as you like. A new format is one `Target` in `targets.py`.
"""
