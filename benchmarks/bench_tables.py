"""Tables of what the programs of this folder measure."""

from typing import Any

from benchmarks.results import table


def kills_table(r: dict[str, Any]) -> str:
  """What `benchmarks.kill_resume` found."""
  midway = sum(bool(k["left_unfinished"]) for k in r["kills"])
  row = [
    "[kill_resume](docs/results/kill_resume/result.json)",
    str(len(r["kills"])),
    str(midway),
    f"{r['compared']:,}",
    str(len(r["differences"])),
  ]
  header = ["benchmark", "kills", "of them in the middle of a write",
            "arrays and numbers compared", "different"]  # fmt: skip
  return table(header, [row])


_FAULTS = {
  "flips": "one bit of a file is another",
  "cuts": "a file ends too early",
  "mends": "one bit is another, the command that the error names is done, and"
  " the run goes on",
  "calls": "an operation on a file fails, and the same command runs again",
  "configs": "odd values in the config",
}
_MENDED = {"mended", "made again", "made up for"}


def faults_table(r: dict[str, Any]) -> str:
  """What `benchmarks.faults` found."""
  rows = []
  for suite, kind in _FAULTS.items():
    ends = r["counts"][suite]
    told, bad = ends.get("told", 0), ends.get("BAD", 0)
    mended = sum(n for end, n in ends.items() if end in _MENDED)
    tried = sum(ends.values())
    nothing = tried - told - mended - bad
    numbers = tried, told, mended, nothing, bad
    rows.append([kind, *(f"{n:,}" for n in numbers)])
  header = ["[faults](docs/results/faults/result.json)", "tried", "told",
            "mended", "nothing changed", "bad"]  # fmt: skip
  return table(header, rows)


_READERS = {
  "packed": "packed, run by NumPy",
  "unpack": "packed, as a source",
  "saved": "a file of `jaxr18.save`",
  "weights": "PyTorch's names, in safetensors",
  "judge": "ONNX, judged",
  "onnx": "ONNX, as a source",
  "qonnx": "QONNX, as a source",
  "c": "images, by the C program with sanitizers",
}


def fuzz_table(r: dict[str, Any]) -> str:
  """What `benchmarks.fuzz` found."""
  rows = []
  for name, about in _READERS.items():
    found = r["readers"][name]
    numbers = (found.get(k, 0) for k in ("refused", "read", "bad"))
    rows.append([about, f"{r['count']:,}", *(f"{n:,}" for n in numbers)])
  header = ["[fuzz](docs/results/fuzz/result.json)", "files", "refused", "read",
            "bad"]  # fmt: skip
  return table(header, rows)


def ranged(row: dict[str, Any], name: str, digits: int = 2) -> str:
  """The median of the rounds, and the lowest and highest: NAME and NAMEs."""
  median, low, high = (f"{x:.{digits}f}" for x in (row[name], *row[name + "s"]))
  return f"{median} ({low} to {high})"


def speed_tables(r: dict[str, Any]) -> str:
  """Ours beside others, of `benchmarks.train_step`: training, evaluation."""
  train, evaluate = [], []
  for name, row in r["rows"].items():
    ours = row["ours"]
    # A training step is the forward and two gradients, a MAC two operations.
    rate = 6 * row["macs"] * ours["train"] / 1e9
    ratios = {
      f"{what}_{of}": ranged(row, f"{what}_{of}")
      if f"{what}_{of}" in row
      else ""
      for what in ("train", "forward", "integers")
      for of in ("ratio", "of_float")
    }
    train.append([
      name,
      _beside(row, "train"),
      ratios["train_ratio"],
      ratios["train_of_float"],
      f"{rate:.0f} ({rate / ours['gflop_per_s']:.0%})",
      f"{ours['first_step_s']:.1f}, {ours['first_step_again_s']:.1f} / "
      + _of_torch(row, "first_step_s", 1),
      f"{ours['peak_bytes'] / 2**30:.1f} / "
      + _of_torch(row, "peak_bytes", 2**30),
    ])  # fmt: skip
    evaluate.append([
      name,
      _beside(row, "forward"),
      ratios["forward_ratio"],
      _beside(row, "integers"),
      ratios["integers_ratio"],
      ratios["integers_of_float"],
    ])  # fmt: skip
  first = ["network", "training, images/s", "ratio", "to its float twin",
           "GFLOP/s (of peak)", "first step, s", "memory, GiB"]  # fmt: skip
  second = ["network", "evaluation, images/s", "ratio", "by integers", "ratio",
            "to its float twin"]  # fmt: skip
  return table(first, train) + "\n" + table(second, evaluate)


def _of_torch(row: dict[str, Any], name: str, unit: int) -> str:
  """A number of eager PyTorch's, and of the compiled one's if it was that."""
  found = [row.get(mode, {}).get(name) for mode in ("eager", "compile")]
  return ", ".join(f"{n / unit:.1f}" for n in found if n is not None)


def _beside(row: dict[str, Any], what: str) -> str:
  """Images a second of ours, the better PyTorch and ONNX Runtime."""
  by_name = [("ours",), ("eager", "compile"), ("onnx",)]
  found = [
    [row[n][what] for n in names if what in row.get(n, {})] for names in by_name
  ]
  return " / ".join(f"{max(values):,.0f}" for values in found if values)


def pruning_tables(r: dict[str, Any]) -> str:
  """What `benchmarks.pruning` measured: on the host, then in steps."""
  names = {
    "masks": f"mask all but {r['density']:g} of the weights of ResNet-18",
    "shrink": "remove half of the channels of ResNet-18",
  }
  hosted = table(
    ["between two steps", "seconds", "the first time"],
    [
      [names[k], f"{v['median_s']:.2f}", f"{v['first_s']:.2f}"]
      for k, v in r["host"].items()
    ],
  )
  rows = []
  for name, row in r["rows"].items():
    cells = [name, f"{row['macs'] / 1e6:.1f} M"]
    for what in ("train", "forward"):
      beside = "" if name == "dense" else ranged(row, f"{what}_ratio")
      cells += [f"{row[what]:,.0f}", beside]
    rows.append([*cells, "" if name == "dense" else row["beside"]])
  steps = table(
    ["network", "MACs", "training, images/s", "ratio", "evaluation, images/s",
     "ratio", "to"],
    rows,
  )  # fmt: skip
  return f"{hosted}\n{steps}"


def distill_table(r: dict[str, Any]) -> str:
  """Epochs with and without a teacher, as `benchmarks.distill` measured."""
  rows = []
  for name, row in r["rows"].items():
    cells = [
      f"{name}, {row['student_macs'] / 1e6:.1f} M MACs",
      f"{row['teacher_macs'] / 1e6:.1f} M MACs",
    ]
    cells += [f"{row[what]:,.0f}" for what in ("plain", "cached", "uncached")]
    cells += [ranged(row, f"{what}_cost", 3) for what in ("cached", "uncached")]
    rows.append(cells)
  header = ["student", "teacher", "no teacher, images/s", "kept logits",
            "teacher in the step", "epoch with kept logits, of a plain one",
            "with the teacher in the step"]  # fmt: skip
  return table(header, rows)


def members_table(r: dict[str, Any]) -> str:
  """Vmapped members against a loop, as `benchmarks.members` measured."""
  rows = []
  for name, row in r["rows"].items():
    cells = [f"{name}, {row['macs'] / 1e6:.1f} M MACs"]
    for what in ("forward", "gradient", "population"):
      cells += [
        f"{row[f'{what}_vmapped']:,.0f} / {row[f'{what}_loop']:,.0f}",
        f"{row[f'{what}_speedup']:.2f}",
      ]
    rows.append(cells)
  header = [f"{r['members']} members, images/s of all", "forward, vmapped /"
            " loop", "ratio", "gradient, vmapped / loop", "ratio",
            "training, together / one at a time", "ratio"]  # fmt: skip
  return table(header, rows)


def growth_table(r: dict[str, Any]) -> str:
  """How time and memory grow, as `benchmarks.growth` measured."""
  rows = []
  for name, row in r["rows"].items():
    seconds = " / ".join(f"{x:.3g}" for x in row["seconds"])
    memory = " / ".join(f"{x / 2**20:,.0f}" for x in row["bytes"])
    sizes = ", ".join(map(str, row["sizes"]))
    exponents = [
      "" if (e := row[f"{key}_exponent"]) is None else f"{e:.2f}"
      for key in ("work", "seconds", "bytes")
    ]
    rows.append([f"{name}: {sizes}", seconds, memory, *exponents])
  header = ["what grows: its sizes", "seconds", "MiB",
            "exponent of the work", "of the time", "of the memory"]  # fmt: skip
  return table(header, rows)


def onnx_speed_table(r: dict[str, Any]) -> str:
  """From what `benchmarks.onnx_speed` measured."""
  what = {
    "simulated": "the network as trained, XLA",
    "integer": "int8 convolutions, XLA",
    "onnx": "ONNX, ONNX Runtime",
    "onnx_int": "ONNX with sums of 8 bits, ONNX Runtime",
    "onnx4": "ONNX with int4 kernels, ONNX Runtime",
    "stablehlo": "StableHLO, XLA",
    "packed": "packed, NumPy",
  }
  rates = r["images_per_s"]
  base = rates.get("simulated")
  rows = [
    [what[k], f"{v:,.0f}", f"{v / base:.2f}" if base else ""]
    for k, v in rates.items()
  ]
  header = [f"{r['run']}, batches of {r['batch']}", "images/s",
            "to the first"]  # fmt: skip
  return table(header, rows)


def onnx_forms_table(r: dict[str, Any]) -> str:
  """From what `benchmarks.onnx_forms` measured."""
  what = {
    "float32": "float32",
    "static": "ONNX Runtime's static quantization of it",
    "onnx4": "`onnx4`",
    "onnx": "`onnx`",
    "onnx_int": "`onnx_int`",
  }
  networks = r["networks"]
  rows = []
  for form, name in what.items():
    cells = [name]
    for one in networks.values():
      rates = one["images_per_s"]
      share = rates[form] / rates["float32"]
      cells.append(f"{rates[form]:,.0f} ({share:.2f})")
    rows.append(cells)
  return table(["images/s on one thread (to float32)", *networks], rows)


def integers_table(r: dict[str, Any]) -> str:
  """From what `benchmarks.integer_speed` measured."""
  what = {
    "integer_xla": "`--integer`, XLA",
    "integer_auto": "`--integer`, oneDNN",
    "program_xla": "program of integers, XLA",
    "program_auto": "program of integers, oneDNN",
  }
  rows = []
  for name, rates in r["images_per_processor_s"].items():
    base = rates["float32"]
    cells = [f"{rates[k]:,.0f} ({rates[k] / base:.2f})" for k in what]
    rows.append([name, f"{base:,.0f}", *cells])
  header = [f"images/s, batches of {r['batch']}", "float32", *what.values()]
  return table(header, rows)


FORMS = {
  "definition": "definition, XLA and oneDNN",
  "c": "C",
  "stablehlo_int": "StableHLO, integers alone, XLA",
  "packed": "packed, NumPy",
  "stablehlo": "StableHLO, XLA",
  "onnx": "ONNX Runtime",
  "onnx4": "ONNX Runtime, int4 kernels",
  "onnx_int": "ONNX Runtime, sums of 8 bits",
  "qonnx": "QONNX's executor",
  "litert": "LiteRT, XNNPACK",
  "litert_own": "LiteRT's own kernels",
  "litert4": "LiteRT, int4 kernels",
}
DEPLOY_HEADER = ["form", "right answers", "answers that are not the"
                 " definition's", "bytes", "bytes of memory",
                 "images a second"]  # fmt: skip


def deploy_row(name: str, row: dict[str, Any]) -> list[str] | None:
  """One row of `deploy_table`; None of what is only held against others."""
  if name not in FORMS:
    return None
  memory = "" if row["memory"] is None else f"{row['memory']:,}"
  other = row["other_than"].get("definition", 0)
  return [
    FORMS[name],
    f"{row['right']:,}",
    f"{other:,}",
    f"{row['bytes']:,}",
    memory,
    f"{row['images_per_s']:,.0f}",
  ]


def deploy_table(r: dict[str, Any]) -> str:
  """All forms of a network, as `benchmarks.deploy` measured."""
  found = r["forms"]
  rows = [deploy_row(k, found[k]) for k in FORMS if k in found]
  peak = ["an image's activations, in closed form", "", "", "",
          f"{r['peak_bytes']:,}", ""]  # fmt: skip
  return table(DEPLOY_HEADER, [*(row for row in rows if row), peak])


def litert_table(r: dict[str, Any]) -> str:
  """LiteRT's forms beside the network and the definition of their own."""
  rows = []
  for name in ("litert", "litert_own", "litert4"):
    row, own = r["forms"][name], "definition_litert"
    own += "4" if name == "litert4" else ""
    numbers = [row["bytes"], row["right"], row["other_than"]["packed"],
               row["other_than"][own]]  # fmt: skip
    rows.append([FORMS[name], *(f"{n:,}" for n in numbers)])
  header = ["form", "bytes", "right answers", "not the network's answers",
            "not those of the definition with its sums and biases"]  # fmt: skip
  return table(header, rows)
