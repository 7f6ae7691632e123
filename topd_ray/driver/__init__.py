"""Places the actors, streams references between them, keeps the books. Only this package uses Ray."""
