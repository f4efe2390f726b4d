"""Predictions on a user's own pictures: images, boxes, and runs over folders and videos."""
