"""Other tools read our data: one file a format. `engine.py` runs them, docs/neighbours.md says what they make."""
