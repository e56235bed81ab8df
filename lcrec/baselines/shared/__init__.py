"""What several methods share: networks, losses, negatives, sequences, the training loop."""
