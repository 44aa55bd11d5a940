"""The benchmarks of benchmark.py, a module each, with `add_options(parser)` and `measure(args)`."""
