"""What pushes to AWS share."""
