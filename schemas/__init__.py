"""What things are: samples, fields, labels, tables, settings, errors. Imports nothing else of scenemill."""
