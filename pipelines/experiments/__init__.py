"""From an experiment to what it asks for: training, evaluation, prediction, export, fit."""
