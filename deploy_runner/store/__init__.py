"""The content-addressed store, the action records and the stat memo."""
