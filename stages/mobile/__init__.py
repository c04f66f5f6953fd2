"""Models for phones and small devices, and the code that calls them."""
