"""Errors with a message for the user: the field or file, the value seen, the way out.

Every error is built from one string, so that it survives pickling between actors.
"""


def printable(text: str) -> str:
    """Return `text` with its control characters escaped, except newline and tab.

    Messages quote data and model output, which could otherwise send commands to the
    terminal.
    """
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class TopdError(Exception):
    """Base of every error that topd_ray raises on purpose.

    The command line prints its message without a traceback, and ends with `exit_code`.
    """

    exit_code = 1


class UserError(TopdError):
    """A mistake in a config, a data file, a model folder or a command, for the user to
    correct.
    """

    exit_code = 2


class PlacementError(UserError):
    """Actors that the nodes of the cluster have no room for.

    On a larger cluster a resumed run goes on.
    """


class WeightsError(TopdError):
    """Weights that an engine cannot take, or computes with otherwise than the learner.

    A resumed run would fail in the same way.
    """


class DeadlineError(TopdError):
    """A wait was too long; the message names what was awaited, and from which actor."""


class ActorFailedError(TopdError):
    """An actor died or raised; the message names the actor, the call and the cause."""


class ActorDiedError(ActorFailedError):
    """The process of an actor has ended; another actor can repeat the call."""


class ActorOutOfMemoryError(ActorDiedError):
    """Ray ended an actor because its machine ran out of memory."""


class EngineDiedError(ActorDiedError):
    """The process of an actor lives, but can compute no more: its GPU failed, or
    another process that it computes with is gone.

    Another actor can repeat the call.
    """


class LostObjectError(TopdError):
    """An actor's result was lost with the machine that held it.

    The run can only go back to a checkpoint.
    """


class LostNodeError(LostObjectError):
    """The machine with an actor's GPUs is gone, so the actor has no place any more."""


class BadStepsError(TopdError):
    """Too many steps in a row were bad by the rules of the section `health`."""
