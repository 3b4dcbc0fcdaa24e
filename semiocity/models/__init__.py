"""Neural networks and their maths in pure torch: one file a family, nothing else of this project imported."""
