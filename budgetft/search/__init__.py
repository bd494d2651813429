"""Choosing the knobs: what may be tried, what to try next, and when to stop."""
