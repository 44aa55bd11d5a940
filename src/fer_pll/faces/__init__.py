"""The crops of checkpoints by name, and the faces of videos. What finds and aligns faces travels with checkpoints:
see `model.face_detection` and `model.face_alignment`.

Detectors need the extra `faces` (`pip install 'fer-pll[faces]'`); it is imported when a detector is made.
"""
