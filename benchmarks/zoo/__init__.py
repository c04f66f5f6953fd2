"""Models of many kinds, each converted by torch's bare exporters and by the product: `make bench-zoo`."""
