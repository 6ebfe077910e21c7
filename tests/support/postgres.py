"""A PostgreSQL server of its own for a test, from an installed package."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest


def _programs() -> pathlib.Path:
  """The folder of initdb and postgres; Debian's is not on the path."""
  found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
  initdb = shutil.which("initdb") or (str(found[-1]) if found else "")
  if not initdb:
    pytest.skip("PostgreSQL is not installed: no initdb was found")
  return pathlib.Path(initdb).resolve().parent


@contextlib.contextmanager
def server() -> Iterator[str]:
  """Starts a server with a password on a free port.

  Yields:
    The address of its empty database, as --storage takes it.

  Skips the test where PostgreSQL or its Python package is missing.
  """
  psycopg = pytest.importorskip("psycopg")  # SQLAlchemy's choice since 2.1
  programs, word = _programs(), "se:cret"
  user = pwd.getpwuid(os.getuid())
  if user.pw_uid == 0:  # whom PostgreSQL refuses
    try:
      user = pwd.getpwnam("postgres")
    except KeyError:
      pytest.skip("PostgreSQL refuses root, and no user is called postgres")
  with tempfile.TemporaryDirectory(prefix="jaxr18-postgres-") as name:
    os.chown(name, user.pw_uid, user.pw_gid)
    data, secret = pathlib.Path(name, "data"), pathlib.Path(name, "secret")
    secret.write_text(word)
    os.chown(secret, user.pw_uid, user.pw_gid)
    as_user = dict(user=user.pw_uid, group=user.pw_gid, cwd=name)
    subprocess.run(
      [programs / "initdb", "-D", data, "-U", "me", "--auth=scram-sha-256",
       f"--pwfile={secret}", "--no-sync"],
      check=True, stdout=subprocess.DEVNULL, **as_user,
    )  # fmt: skip
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    log = pathlib.Path(name, "log")
    with log.open("w") as f:
      process = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-k", name,
         "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
        stdout=f, stderr=f, **as_user,
      )  # fmt: skip
    try:
      address = f"postgresql://me:{quote(word)}@127.0.0.1:{port}/postgres"
      _wait(process, psycopg, address, log)
      yield address
    finally:
      process.send_signal(signal.SIGINT)  # it waits for no client then
      process.wait(timeout=60)


def _wait(process: subprocess.Popen, psycopg, address: str, log) -> None:
  """Waits until the server serves: its port is open before it does."""
  end = time.monotonic() + 60
  while time.monotonic() < end and process.poll() is None:
    with contextlib.suppress(psycopg.OperationalError):
      psycopg.connect(address).close()
      return
    time.sleep(0.05)
  raise AssertionError(f"PostgreSQL did not start: {log.read_text()}")
