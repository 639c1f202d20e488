"""Operators: each calls one step of the engine."""
