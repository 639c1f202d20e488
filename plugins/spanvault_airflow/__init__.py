"""The Airflow face of Spanvault: hooks, operators, links and the DAG factory. All work is done by `spanvault.engine`."""
