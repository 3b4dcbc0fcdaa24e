"""`semiocity browse`: the gallery of a dataset, served on loopback. docs/browse.md says how the parts fit."""
