"""Is it true? Checks of one sample, and expectations of a table of them."""
