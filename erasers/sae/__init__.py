"""Sparse autoencoders: training, files, and the blocks that they read."""
