"""How values of the data stand in error messages."""

SHOWN_CHARS = 80


class RowError(Exception):
    """One row is malformed; `read_records` adds the file and the line."""


def shown(value: object) -> str:
    """Return `value` as Python writes it, shortened; lone surrogates are escaped."""
    text = repr(value[:SHOWN_CHARS] if isinstance(value, str | bytes) else value)
    if len(text) > SHOWN_CHARS or (
        isinstance(value, str | bytes) and len(value) > SHOWN_CHARS
    ):
        return f"{text[:SHOWN_CHARS]}..."
    return text


__all__ = ["RowError", "shown"]
