"""The program behind benchmark.py: a module for each benchmark, with `add_options(parser)` and `measure(args)`."""
