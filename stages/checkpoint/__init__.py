"""Trained checkpoints: read without running them, written, resumed."""
