"""Figures as PNG files, one module each."""
