"""The denoiser: noise, text, predictions, gradients, and what they cost."""
