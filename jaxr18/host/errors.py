"""The base of all errors whose text is everything that a person needs."""


class ToldError(Exception):
  """An error that a command prints without a traceback.

  Its text says where it is, what was got, what was expected and the mend.

  Attributes:
    status: the exit status of the command that it ends.
  """

  status = 1
