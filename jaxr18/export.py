"""Exports a finished run's network: python -m jaxr18.export --workdir=runs/NAME

    python -m jaxr18.export --workdir=runs/kd_quant --format=packed
    python -m jaxr18.export --workdir=runs/kd_quant --format=stablehlo
    python -m jaxr18.export --workdir=runs/kd_quant --format=onnx_int
    python -m jaxr18.export --workdir=runs/kd_quant --format=c
    python -m jaxr18.export --workdir=runs/kd_quant --format=litert

All take uint8 images [n, size, size, channels] and give logits; normalization
and folded batch norm are inside. packed is a safetensors file with each weight
at its true bits, which jaxr18/deploy/packed.py runs with NumPy alone; stablehlo
is jax.export's, for CPUs and CUDA (extra `export`), and stablehlo_int has
integers alone; onnx is for ONNX Runtime (extra `onnx`), onnx_int is the fast
form with residual sums of 8 bits, and onnx4 has int4 kernels; c is a folder
with a program of integers alone and a test image; litert is for phones (extra
`litert`), and litert4 has int4 kernels there. An ensemble goes into one file of
onnx, stablehlo or litert.

The file is loaded again and held against the network on the test split; what
was found is printed and kept in WORKDIR/result.json under "export"; of a
--phase other than the last it is printed alone.

Exit status: 0 when it is written; 1 when the run is not finished or damaged, or
the file cannot be written; 2 when the command cannot be run.
"""

from absl import app, flags

from jaxr18 import cli
from jaxr18.host.doing import doing

_FORMATS = (
  "packed",
  "stablehlo",
  "stablehlo_int",
  "onnx",
  "onnx_int",
  "onnx4",
  "qonnx",
  "c",
  "litert",
  "litert4",
)

_WORKDIR = cli.workdir_flag()
_DATA_DIR = cli.data_dir_flag()
_PHASE = cli.phase_flag()
_FORMAT = flags.DEFINE_string(
  "format", "packed", f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}."
)
_OUT = flags.DEFINE_string(
  "out",
  "",
  "The file, or c's folder; default: WORKDIR/export/[PHASE/]network.SUFFIX, or"
  " c.",
)


def main(argv: list[str]) -> None:
  del argv
  if not _WORKDIR.value:
    raise app.UsageError("give --workdir=DIR of a finished run")
  if _FORMAT.value not in _FORMATS:
    raise app.UsageError(
      f"--format={_FORMAT.value} must be one of {', '.join(_FORMATS)}"
    )
  _need_extra(_FORMAT.value)
  doing(f"loading JAX and the run, to write and test {_FORMAT.value}")
  # Imported late: --help and a wrong flag need no JAX.
  from jaxr18.run import export as exporting

  path, found = exporting.export_run(
    _WORKDIR.value,
    _FORMAT.value,
    _OUT.value,
    _DATA_DIR.value,
    _PHASE.value,
  )
  n = found.count
  print(f"{path}: {found.bytes:,} bytes")
  if found.bytes_of_memory is not None:
    print(
      f"{found.bytes_of_memory:,} bytes of static memory and"
      f" {found.bytes_of_weights:,} of weights"
    )
  elif found.bytes_of_weights is not None:
    print(
      f"{found.bytes_of_weights:,} of them without the description;"
      f" {found.bytes_charged:,} are charged by the on-disk score"
    )
  print(f"test accuracy {found.accuracy:.2%} ({found.correct} of {n})")
  if found.milliseconds is not None:
    print(
      f"{found.milliseconds:.2f} ms for one image,"
      f" {found.images_per_second:,.0f} images a second in batches, on"
      f" {found.measured_on}"
    )
  print(
    f"the same answer as the network in {found.same_answers} of {n} images;"
    f" logits differ by up to {found.largest_difference:.2g}, by more than"
    f" 1e-4 in {found.images_apart} images"
  )


def _need_extra(name: str) -> None:
  """Raises where the format's packages are not installed."""
  extra, *modules = {
    "packed": ("",),
    "c": ("",),
    "stablehlo": ("export", "flatbuffers"),
    "stablehlo_int": ("export", "flatbuffers"),
    "onnx": ("onnx", "onnx", "onnxruntime"),
    "onnx_int": ("onnx", "onnx", "onnxruntime"),
    "onnx4": ("onnx", "onnx", "onnxruntime"),
    "qonnx": ("qonnx", "qonnx"),
    "litert": ("litert", "flatbuffers", "ai_edge_litert"),
    "litert4": ("litert", "flatbuffers", "ai_edge_litert"),
  }[name]
  for module in modules:
    try:
      __import__(module)
    except ImportError as e:
      raise app.UsageError(
        f"--format={name} needs {module} ({e}): pip install 'jaxr18[{extra}]'"
      ) from e


if __name__ == "__main__":
  cli.run(main)
