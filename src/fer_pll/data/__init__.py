"""Data sets of faces: sources, prepared sets, and the way to a batch."""

from PIL import EpsImagePlugin

# `datasets` opens the images of a prepared set with whatever plugin of Pillow fits. None may start a program.
EpsImagePlugin.gs_binary = False
