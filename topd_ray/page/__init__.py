"""One page of a run: the report on disk, and the same page served while it goes on.

A run folder becomes an overview (plain JSON) and blocks of columns, one for each step's
windows, rollouts and calls. The report embeds them; `topd watch` serves them.
"""
