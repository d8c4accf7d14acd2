"""What QuPath opens: GeoJSON heatmaps, and pictures of the same for those without QuPath."""
