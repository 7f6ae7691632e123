"""Pretrained models and verifiable problems, for `make real` and the studies."""
