"""From what annotators said to what the loss sees: candidate sets and confidences."""
