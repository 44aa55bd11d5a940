"""Trainers and their arguments."""
