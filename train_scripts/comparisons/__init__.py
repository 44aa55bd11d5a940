"""What reproduce.py is made of: the tables, the runs behind them, and the audit of labels."""
