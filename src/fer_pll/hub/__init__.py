"""Publishing on the Hub: model cards, checkpoints and confidences."""
