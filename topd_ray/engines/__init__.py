"""Doors to the heavy libraries: one file a back end, behind the protocols."""
