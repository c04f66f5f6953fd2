"""What a user writes without deploy-runner: the same calls of the same libraries, in one process."""
