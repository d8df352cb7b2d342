"""Reference implementation of DiAD (He et al., AAAI 2024): model, training, export and pipeline."""
