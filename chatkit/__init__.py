"""A moderated, grounded chat service you own."""

__version__ = "0.1.0"
