"""What a model sees and says."""
