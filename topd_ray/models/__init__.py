"""Model folders: found, read and compared without loading a model; tensors; export."""
