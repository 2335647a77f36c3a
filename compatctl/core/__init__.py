"""The mathematics, in numpy: no files, no clock, no global random state."""
