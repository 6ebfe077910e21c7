"""Draws accuracy against bits from docs/results/quant_*/result.json.

    python -m benchmarks.bits_picture

Writes docs/quantization.svg and .png. The runs, all from runs/dense_narrow:

    for b in 8 4 3 2; do for kind in "" ptq; do
      python -m jaxr18.main --config=configs/quant.py:$kind$b \\
          --workdir=runs/quant_$kind$b
    done; done
"""

from benchmarks.tables import QUANT_BITS, ROOT, load
from jaxr18.report import bits


def main() -> None:
  accuracy = lambda name: load(name)["test_accuracy"]
  curves = {
    label: {b: accuracy(f"quant_{kind}{b}") for b in QUANT_BITS}
    for kind, label in (
      ("", "trained 4 epochs, distilled"),
      ("ptq", "calibrated only"),
    )
  }
  for suffix in ("svg", "png"):
    path = ROOT / "docs" / f"quantization.{suffix}"
    bits.draw(curves, accuracy("dense_narrow"), path)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
  main()
