"""`shapes-llava`: a small LLaVA that says what is in the pictures of `shapes`.

It is trained by its script, and is no world yet: there are no weights in the package.
"""
