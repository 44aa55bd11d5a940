"""Base of the methods that learn from one given label for each row, and doubt it in their own ways."""

from .base import Method


class GivenLabelMethod(Method):
    """A method of given labels: it uses no candidate sets and revises no confidences."""

    uses_candidates = False
    columns = ("labels",)
    revisions = ("none",)
