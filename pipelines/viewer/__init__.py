"""A read-only server of one page: logs of 3D checkpoints, stores, predictions and metric tables."""
