"""Readers of public layouts, of a user table, and the embedded phantoms: each yields cases."""
