"""The actors and their typed handles. The only package that imports Ray.

Workers (rollout, teacher, prober, learner) put the stages together. They are plain
classes: unit tests and `cluster.placement: inline` call them as they are. Each method
returns its payload first and a receipt last; the driver fetches receipts only.
"""
