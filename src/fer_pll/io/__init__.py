"""Files and errors: what everything else reads and writes with. Imports neither torch nor transformers."""
