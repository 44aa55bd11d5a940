"""From any photograph to the crops that a model was trained on: open, detect, align, recognize.

What detects is the extra `faces` (`pip install 'fer-pll[faces]'`); it is imported when a detector is made.
"""
