"""What a run leaves behind: the run folder, metrics, windows, time line, display,
receipts.
"""
