"""Training: autoencoder, then SG network and denoiser, then the extractor; only good images are used, no masks."""
