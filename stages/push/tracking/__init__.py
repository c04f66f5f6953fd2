"""How `push.mlflow` saves a model for MLflow, and finds, makes and moves its versions."""
