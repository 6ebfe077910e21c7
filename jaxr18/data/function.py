"""A person's own images from a function, which a config names."""

import functools

import numpy as np

from jaxr18.data import npz
from jaxr18.data.facts import Facts, ImagesError
from jaxr18.host import own


def facts(name: str) -> Facts:
  """Calls the function and looks at what it returns; raises as `read`."""
  return _called(name)[1]


def read(name: str) -> npz.Arrays:
  """Calls a function of the user's own for a data set.

  Args:
    name: 'module:function'. The function takes nothing and returns the four
      arrays of `data.npz`, of any size, channels and classes.

  Raises:
    ImagesError: it cannot be imported, or returns something else.
  """
  return _called(name)[0]


@functools.cache
def _called(name: str) -> tuple[npz.Arrays, Facts]:
  try:
    function = own.load(name)
  except own.OwnError as e:
    fact, _, mend = str(e).rpartition("; ")
    raise ImagesError(fact or str(e), mend) from e
  try:
    arrays = {k: np.asarray(v) for k, v in function().items()}
  except Exception as e:  # whatever it raises
    raise ImagesError(
      f"{name} gives no arrays ({type(e).__name__}: {e})",
      "return {train,test}_{images,labels}",
    ) from e
  return npz.checked(name, arrays)
