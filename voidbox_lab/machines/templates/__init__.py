"""Templates: machines booted once, saved, and restored as any number of clones.

`keeper` is what a process uses: it makes a template at first need (`make`), keeps it on disk (`store`, `pages`)
and in memory (`resident`). Not for what a clone does after it wakes, which is `voidbox_lab.box`.
"""
