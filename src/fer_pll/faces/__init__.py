"""Face detection and alignment: from a photograph to crops like those that a model was trained on.

Detectors need the extra `faces` (`pip install 'fer-pll[faces]'`); it is imported when a detector is made.
"""
