"""Data sets of faces: every loader gives the same `datasets` features, whatever the layout on disk."""

EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
"""The eight expressions in FER+'s order; loaders of other data sets map their own order onto this one."""
