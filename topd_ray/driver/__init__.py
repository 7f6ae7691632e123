"""One training run: the loop over steps, its sessions, its state and its checkpoints."""
