"""Models as strangers write them."""
