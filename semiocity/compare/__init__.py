"""Comparing trainings: `semiocity compare`. See docs/compare.md."""
