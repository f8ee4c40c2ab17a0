"""The tests, and what they share: ``python -m pytest`` in the folder above."""
