"""Streams of images, for data that are larger than the disk."""
