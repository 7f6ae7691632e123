"""`topd doctor`: looks at a machine, and says what would stop a run on it."""
