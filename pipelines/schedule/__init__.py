"""Batches of conversions: what is due, what came of it, and whom to tell."""
