"""Measurements, never assertions: machines are noisy, so contestants run interleaved and ratios come with their spread."""
