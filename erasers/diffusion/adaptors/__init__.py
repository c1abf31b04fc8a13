"""How each family of denoisers is called: what it reads of prompts, of latents and of times."""
