"""Training of the small and the published models on normal images, without masks."""
