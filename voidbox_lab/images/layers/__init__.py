"""Packages as layers on top of an image: what a stage's skills need in its box, and only in its.

`stack.add_packages` is the way in. Each kind of package is a module of its own: `deb`, `pypi`, `npm`, and
`runtime` for what others need to run at all. A kind plans (which exact files, once, from the network) and fills
(the files into a tree, from what was planned, again and again).
"""
