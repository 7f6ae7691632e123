"""Places the actors, streams references between them, keeps the books. The one user of
Ray.
"""
