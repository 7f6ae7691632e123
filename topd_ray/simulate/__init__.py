"""The real driver over simulated actors, in virtual time: what a placement would do, in
seconds.

    rates (of hardware or of a run) + workload + config -> Pipeline over `workers` ->
    Prediction

`clock` fires timers at once and lets no time pass but the simulated one; `machine`
shares cores and GPUs among what runs on them; `handles` look like Ray's; `workers` have
the real workers' methods and take as long as `rates` says. The pipeline itself is the
one that trains.
"""
