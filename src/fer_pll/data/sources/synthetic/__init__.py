"""Drawn faces with simulated annotators."""
