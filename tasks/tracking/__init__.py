"""What runs leave in MLflow: one parent run a flow run, one nested run a stage, and registered models.

Artifacts and figures enter; runs and model versions leave. They go to MLFLOW_TRACKING_URI, or to a database
in the home folder.
"""
