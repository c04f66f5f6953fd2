"""A local page over a store: its pipelines and runs, read and never written."""
