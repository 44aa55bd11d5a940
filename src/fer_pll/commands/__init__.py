"""The commands of `fer-pll`, one module each."""
