"""`shapes-janus`: a small Janus that draws the pictures of `shapes` token by token.

It draws the plain ones, without styles and stamps. It is trained by its script; there are no weights in the package.
"""
