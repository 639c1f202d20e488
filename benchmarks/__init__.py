"""Measurements against other tools; run from the repository's root."""
