"""What a weight is worth."""
