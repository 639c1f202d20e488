"""Spanvault: backup and restore for SQL clusters."""

__version__ = "0.1.0"
