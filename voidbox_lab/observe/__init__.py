"""Runs made visible: pandas frames (`frames`). Not for drawing them: see `voidbox_lab.widgets`."""
