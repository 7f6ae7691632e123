"""Model folders and weights on the move: what they hold, how a version travels, how it
is kept.
"""
