"""Hooks: Airflow Connections in, the engine's clusters, collections and context out."""
