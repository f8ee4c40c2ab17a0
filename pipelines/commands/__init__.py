"""The verbs of the command line, a file per kind, and how they print."""
