"""Images that are too many for the disk, read as a stream."""
