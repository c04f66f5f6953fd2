"""The user's own steps."""
