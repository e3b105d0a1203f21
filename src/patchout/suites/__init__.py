"""Encoders for the embedding benchmarks of others: mteb (MAEB) and X-ARES."""
