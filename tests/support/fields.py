"""Sets fields of a config by their dotted names, whatever their types are."""

import ml_collections


def put(config: ml_collections.ConfigDict, name: str, value) -> None:
  """Sets a field, or one that is not there, without a word about its type."""
  *sections, last = name.split(".")
  with config.unlocked(), config.ignore_type():
    for section in sections:
      if not isinstance(config.get(section), ml_collections.ConfigDict):
        config[section] = ml_collections.ConfigDict()
      config = config[section]
    if last in config:  # ml_collections would turn True into 1.0
      del config[last]
    config[last] = value


def written(values: dict) -> ml_collections.ConfigDict:
  """Values that a file or a run holds, to be changed by attribute."""
  return ml_collections.ConfigDict(values)
