"""Candidate sets and confidences: from annotators' votes to what the loss sees."""
