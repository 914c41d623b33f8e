"""Figures of a study and pictures of its cases: every function returns a matplotlib `Figure`, `style.save` writes it."""
