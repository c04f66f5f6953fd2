"""From a text to a graph: loaded, overlaid, checked, with every reference resolved."""
