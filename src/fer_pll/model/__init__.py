"""What a checkpoint needs.

These files travel with it to the Hub as remote code, so they import nothing of ours outside this folder. Nothing is
imported here, because `face_crop` is read without torch as well.
"""
