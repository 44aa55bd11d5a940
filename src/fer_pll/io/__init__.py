"""Reading and writing files, and errors in what a user gave. Imports neither torch nor transformers."""
