"""Adapters that run lm-evaluation-harness on our engines, for `topd eval`."""
