"""The Backups page in Airflow's navigation: what the collections hold, read from their index. docs/backups_page.md."""
