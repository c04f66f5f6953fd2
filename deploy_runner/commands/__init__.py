"""The verbs of the command line: each function takes what was parsed and returns the exit code."""
