"""Phantoms generated from a seed with numpy and scipy: their true transforms are known."""
