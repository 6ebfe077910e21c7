import os

import jax
import pytest

from jaxr18.nn import compiled


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A cache folder of the test's own; JAX's settings come back after it."""
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)


def test_a_folder_by_machine_without_what_is_old(home):
  folder = compiled.keep_compiled()
  assert folder.parent == home / "cache" / "jaxr18"
  assert folder.name.startswith("xla-")
  assert jax.config.jax_compilation_cache_dir == str(folder)
  for name, age in (("old", 40), ("new", 20)):
    (folder / name).write_text("")
    then = (folder / name).stat().st_mtime - age * 24 * 3600
    os.utime(folder / name, (then, then))
  jax.config.update("jax_compilation_cache_dir", None)
  assert compiled.keep_compiled() == folder
  assert [p.name for p in folder.iterdir()] == ["new"]


def test_the_users_own_choice_stays(home):
  jax.config.update("jax_compilation_cache_dir", "/elsewhere")
  assert compiled.keep_compiled() is None
  assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_nothing_where_it_cannot_be_written(home):
  (home / "cache").write_text("")
  assert compiled.keep_compiled() is None
  assert jax.config.jax_compilation_cache_dir is None
