"""Everything that is judged before a run starts: models, prompts, and what a config
asks for.
"""
