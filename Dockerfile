# Airflow with Spanvault: the image of docker-compose.yaml's Airflow services.
FROM apache/airflow:3.3.2-python3.12

COPY --chown=airflow:root requirements.txt /opt/airflow/requirements.txt
RUN pip install --no-cache-dir -r /opt/airflow/requirements.txt

COPY --chown=airflow:root pyproject.toml README.md LICENSE /opt/airflow/
COPY --chown=airflow:root include /opt/airflow/include
COPY --chown=airflow:root plugins /opt/airflow/plugins
COPY --chown=airflow:root dags /opt/airflow/dags

# The `spanvault` command, and the folder that nodelocal:// stands for.
RUN pip install --no-cache-dir --no-deps --editable /opt/airflow && mkdir -p /opt/airflow/extern

ENV PYTHONPATH=/opt/airflow/include:/opt/airflow/plugins \
    SPANVAULT_EXTERNAL_IO_DIR=/opt/airflow/extern
