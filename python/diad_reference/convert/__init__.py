"""Conversion of checkpoints in the published format (Lightning file, LDM and ControlNet key names) into bundles."""
