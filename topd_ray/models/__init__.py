"""Model folder -> facts, checks and single tensors, without loading the model."""
