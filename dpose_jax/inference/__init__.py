"""Prediction: from images, folders and videos to poses."""
