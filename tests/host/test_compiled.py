"""Compiled programs are kept, and what is no use of them is not."""

import os
import time
import zlib

import jax
import pytest

from jaxr18.host import compiled


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Where programs are kept, in a cache folder of the test's own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  yield compiled.keep_compiled()
  for name, value in before.items():
    jax.config.update(name, value)


def again():
  jax.config.update("jax_compilation_cache_dir", None)
  return compiled.keep_compiled()


def test_it_is_in_the_users_cache(folder, tmp_path):
  assert folder.is_dir() and tmp_path in folder.parents
  assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_of_the_users_own_stays(folder, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  assert compiled.keep_compiled() is None
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_only_whole_and_recent_entries_stay(folder):
  packed = zlib.compress(os.urandom(30_000))
  for name, entry in {
    "whole": packed,
    "cut": packed[:8000],
    "empty": b"",
    "zstd": b"\x28\xb5\x2f\xfd" + packed,
    "old": packed,
  }.items():
    (folder / name).write_bytes(entry)
  month = time.time() - 31 * 24 * 3600
  os.utime(folder / "old", (month, month))
  assert again() == folder
  assert {f.name for f in folder.iterdir()} == {"whole", "zstd"}


def test_nothing_is_kept_where_nothing_can_be_written(
  folder, tmp_path, monkeypatch
):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert again() is None
