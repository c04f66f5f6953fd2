"""Run the actions of a plan in worker processes."""
