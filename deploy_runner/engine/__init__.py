"""From a graph to artifacts: what is to be made, its keys, the workers that make it, the record of it."""
