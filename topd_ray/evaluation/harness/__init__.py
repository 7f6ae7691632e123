"""`topd eval`: adapters that make lm-evaluation-harness run on our engines."""
