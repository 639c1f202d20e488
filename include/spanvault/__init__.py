"""Spanvault: backup and restore for SQL clusters."""

__version__ = "0.2.0"
