"""How a model is measured, and with which prompts."""
