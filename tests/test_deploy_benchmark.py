"""benchmarks.deploy: all forms of a small network, on the digits."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import bench_tables, deploy
from jaxr18.data import digits
from jaxr18.data.augment import normalize
from jaxr18.deploy import packed
from jaxr18.deploy.pack import pack
from jaxr18.nn import network
from jaxr18.nn.spec import resnet, with_bits

SIDE, MEAN, STD = 8, (0.3,) * 3, (0.35,) * 3
PACKAGES = ("flatbuffers", "onnxruntime", "qonnx", "ai_edge_litert")


@pytest.mark.slow
def test_counts_the_answers_of_each_form(tmp_path, capsys):
  for package in PACKAGES:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs {package}")
  images, labels = digits.read()
  images = np.repeat(images[..., None] * 15, 3, axis=3).astype(np.uint8)
  npz, file = tmp_path / "digits.npz", tmp_path / "net.safetensors"
  np.savez(npz, train_images=images[:50], test_images=images[50:],
           test_labels=labels[50:].astype(np.int64))  # fmt: skip
  spec = resnet((4, 8), (1, 1), (1, 2), (1, 1), (False,) * 2, resolution=SIDE)
  spec = with_bits(spec, [("stem|head", 8, 8), (".*", 3, 3)])
  net = network.init(jax.random.key(0), spec)
  net = network.calibrate(net, normalize(images[:50], MEAN, STD, SIDE))
  file.write_bytes(pack(net, mean=MEAN, std=STD, provenance={}))

  out = tmp_path / "result.json"
  assert not deploy.main([str(file), f"--images={npz}", "--limit=150",
                          f"--out={out}"])  # fmt: skip
  result = json.loads(out.read_text())
  found, some = result["forms"], images[50:200]
  assert set(bench_tables.FORMS) - set(found) <= {"c"}  # without a compiler
  assert result["images"] == 150
  answers = packed.load(file)[0](some).argmax(-1)
  assert found["packed"]["right"] == (answers == labels[50:200]).sum()
  # The same integers, and the same floats.
  exact = {"stablehlo_int", *({"c"} & set(found))}
  for name, row in found.items():
    assert not row["other_than"].get("definition") or name not in exact
    assert row["other_than"].get("definition", 0) < 40, name
  assert found["stablehlo"]["other_than"]["packed"] == 0
  # LiteRT's own kernels round otherwise than XNNPACK, which is the definition.
  assert found["litert"]["other_than"]["definition_litert"] <= 2
  table = bench_tables.deploy_table(result)
  assert all(line in table for line in capsys.readouterr().out.splitlines()
             if "INFO" not in line)  # fmt: skip
  assert "| LiteRT, int4 kernels | " in bench_tables.litert_table(result)
