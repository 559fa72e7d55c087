"""Noise to picture: autoencoder, noise schedules, samplers, diffusion transformer, and the pipeline joining them."""
