"""Models for OpenVINO."""
