"""Deployments that converge: SageMaker, S3, the Hugging Face Hub."""
