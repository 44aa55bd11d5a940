"""The error for what is not installed."""


class MissingExtra(ImportError, ValueError):
    """A package of an optional extra is not installed; the message says how to install it."""
