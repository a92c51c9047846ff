"""``python -m voidbox_lab.cli``: the same as the ``voidbox`` command."""

from voidbox_lab.cli import main

main()
