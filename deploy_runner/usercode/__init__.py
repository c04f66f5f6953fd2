"""The user's code and the packages that it imports: found, keyed, loaded by its path."""
