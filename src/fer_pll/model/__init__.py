"""Model, configuration and image processor: the code that a checkpoint needs.

These files travel with a checkpoint to the Hub as remote code, so they import nothing of ours outside this folder.
This module imports nothing, because programs without torch import `face_crop`.
"""
