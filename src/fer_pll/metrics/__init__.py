"""Metrics and calibration of a classifier."""
