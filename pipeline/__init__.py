"""Concord: every method turns a case into an ITK transform, and nothing after that point knows which method made it."""

__version__ = "0.1.0"
