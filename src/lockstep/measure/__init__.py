"""What communication costs: measured, counted, predicted."""
