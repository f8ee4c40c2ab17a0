"""Wiring: Beam graphs, runners and the command line. The only place that knows Beam."""
