"""Timings, as ratios within one run: machines are noisy, so medians of repeated rounds are quoted."""
