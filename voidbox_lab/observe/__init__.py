"""Runs made visible, from their events: as pandas frames (`frames`, `span_frames`), as spans (`spans`, `trace`),
and to a collector (`export`). Not for the live view of a run: see `voidbox_lab.widgets`."""
