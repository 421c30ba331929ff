"""What carries out the graph of `pipeline.dag`: this process, Kubeflow Pipelines, Airflow."""
