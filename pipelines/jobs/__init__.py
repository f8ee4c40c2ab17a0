"""A service that runs jobs one after another, and a client that asks it."""
