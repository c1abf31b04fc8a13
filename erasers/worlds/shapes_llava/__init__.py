"""`shapes-llava`: a small LLaVA that says what is in the pictures of `shapes`.

It is no world, as it draws nothing: see `worlds.MODELS`.
"""
