"""The data sets that `fer-pll prepare` reads, one module each."""
