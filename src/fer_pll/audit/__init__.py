"""Label audit: finding the labels of a training set that look wrong."""
