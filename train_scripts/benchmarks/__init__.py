"""The program behind benchmark.py. Each benchmark is a module with `add_options(parser)` and `measure(args)`."""
