"""Measurements, never assertions: machines are noisy, so contestants run interleaved and ratios are reported with their spread."""
