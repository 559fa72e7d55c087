"""Noise to picture: the autoencoder, noise schedules and samplers of latent diffusion."""
