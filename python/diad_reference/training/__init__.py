"""Training: autoencoder, then SG network and denoiser, then extractor; only good pictures are used."""
