"""Converts published-format checkpoints (Lightning file, LDM and ControlNet key names) to bundles."""
