"""Measuring settings: a child process per loaded model, and a ledger of everything it found."""
