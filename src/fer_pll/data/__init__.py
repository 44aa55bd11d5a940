"""Data sets of faces: sources, prepared sets, and the way to a batch."""
