"""`shapes-janus`: a small Janus that draws the pictures of `shapes` token by token.

It is trained by its script, and is no world yet: there are no weights in the package.
"""
