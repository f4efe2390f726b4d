"""Geometry of joints: joint sets, heatmaps, masks, codec. Knows no network and no data set."""
