"""Training: autoencoder, then SG network and denoiser, then the extractor; only good pictures are used, no masks."""
