"""Render events and run records: terminal, JSON, HTML, GitHub."""
