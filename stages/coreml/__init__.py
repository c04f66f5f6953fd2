"""Models for Apple's Core ML."""
