"""From raw input to tensors, and from tensors to an answer, as an io.json says."""
