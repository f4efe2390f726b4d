"""Synthetic people, drawn on the fly."""
