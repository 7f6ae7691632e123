"""One training run: the loop over steps, its sessions, state and checkpoints."""
