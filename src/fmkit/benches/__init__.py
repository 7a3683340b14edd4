"""Published tables, to be measured again: `fmkit bench`."""
