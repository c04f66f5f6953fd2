"""Gates: parity, accuracy, latency and size against the original."""
