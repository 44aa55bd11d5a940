"""Which labels of a training set look wrong."""
