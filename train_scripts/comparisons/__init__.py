"""The program behind reproduce.py: the paper's comparisons and the audit of labels."""
