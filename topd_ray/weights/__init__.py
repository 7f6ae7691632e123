"""Weights of a policy version -> buckets for the engines, or a model folder."""
