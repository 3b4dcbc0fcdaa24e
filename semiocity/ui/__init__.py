"""What people look at: the gallery of a dataset."""
