"""Generating images from layouts, scoring them, and showing what came out."""
