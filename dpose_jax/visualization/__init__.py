"""Drawings of poses, heatmaps and masks."""
