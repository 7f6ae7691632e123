"""What a study shows: tables, figures, text and files, made of finished numbers.

A report takes arrays and plain values and opens no engine. `style.py` draws,
`report.py` writes, `provenance.py` says what a result rests on; the other modules hold
the tables and figures of one study each.
"""
