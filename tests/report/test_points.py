"""What a report says: points, groups, the front, layers, answers, masks."""

import copy
import html
import io
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys

import markdown_it
import numpy as np
import pytest
from PIL import Image
from results import NET, member, result, values

from jaxr18.cost import several
from jaxr18.cost.score import score
from jaxr18.host.workdir import WorkdirError
from jaxr18.nn import spec
from jaxr18.report import (
  charts,
  curves,
  entry,
  evidence,
  layers,
  markdown,
  page,
  palette,
  places,
  points,
  runs,
  sections,
)
from jaxr18.report.points import Point


def run(name, *args, **kwargs):
  return runs.Run(name, None, result(*args, **kwargs), {})


def entries(*found):
  return [entry.Entry(g, None, "none.") for g in points.group(found)]


def filled(chart):
  """The points of a chart of accuracy against score that are of the front."""
  rows = [r for d in chart["datasets"].values() for r in d if "fill" in r]
  return {
    row["said"].partition(",")[0]
    for row in rows
    if row["fill"] != palette.PAPER
  }


def _places(tree):
  """(parent, key) of everything in nested dicts and lists."""
  if isinstance(tree, dict | list):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
      yield tree, key
      yield from _places(tree[key])


class TestPoints:
  def test_public_points_are_those_that_the_work_starts_from(self):
    found = points.reference_points()
    published = [p for p in found if p.series == "published results"]
    assert len(published) == 15 and len(found) == 28
    first, last = published[0], published[-1]
    assert first.label == "dense ResNet18 fp32"
    assert first[1:3] == pytest.approx((0.9360, 3.987780))
    assert last.label == "ensemble of five"
    assert last[1:3] == pytest.approx((0.9347, 0.597288))
    assert "selimgit-hub" in published[0].detail
    assert len({p.label for p in found}) == 28
    assert max(len(p.label) for p in found) <= 32
    by_label = {p.label: p for p in found}
    eight = by_label["ResNet-8, int8"]
    assert eight.series == "benchmarks, libraries"
    assert "mlcommons/tiny" in eight.detail and "10,000" in eight.detail
    assert "not run again" in by_label["A2Q ResNet-18, W4A4"].detail
    assert points.published_task() == ("cifar10", 10_000, 10)

  def test_published_points_stand_beside_their_task_alone(self):
    of = lambda **more: entries(run("a", test_count=10_000, **more))
    assert len(entry.all_points(of(), "per_layer")) == 29
    digits = values()["config"]
    digits["data"]["name"] = "digits"
    for other in (of(config=digits), entries(run("a"))):  # of 100 images
      assert [p.label for p in entry.all_points(other, "per_layer")] == ["a"]
      assert "90%" not in entry.overview_texts(other)[0]
    coarse = values()["spec"]
    coarse["head"]["classes"] = 2
    assert len(entry.all_points(of(spec=coarse), "per_layer")) == 1
    members = [member(i, 7_000, count=10_000) for i in range(3)]
    three = entries(run("p", test_count=30_000, members=members))
    assert len(entry.all_points(three, "per_layer")) == 29

  def test_what_did_not_end_is_no_front(self):
    halved = Point("halved", 0.9, 0.1, ended=False)
    ended = Point("ended", 0.8, 0.2)
    assert points.front([halved, ended]) == [ended]
    both = charts.pareto([ended, halved]).to_dict()
    assert filled(both) == {"ended"}

  def test_front_is_what_nothing_beats(self):
    draw = random.Random(0)
    scores = [1 + draw.randrange(20) for _ in range(60)]
    every = [
      Point(str(i), (score + draw.randrange(15)) / 40, score)
      for i, score in enumerate(scores)
    ]
    front = points.front(every)
    assert 2 < len(front) < 20
    assert front == sorted(front, key=lambda p: p.score)
    beaten = lambda p: any(
      q.accuracy >= p.accuracy
      and q.score <= p.score
      and (q.accuracy, q.score) != (p.accuracy, p.score)
      for q in every
    )
    places = {p[1:3] for p in front}
    assert places == {p[1:3] for p in every if not beaten(p)}
    assert len(places) == len(front)

  def test_seeds_are_one_point(self):
    found = points.group(
      [
        run("a_seed0", 0, 80),
        run("other", 0, 90, 0.2),
        run("a_seed1", 1, 84),
        run("again", 1, 100),  # no second draw
      ]
    )
    assert [g.name for g in found] == ["a", "other"]
    a, other = (points.of_group(g, "per_layer") for g in found)
    assert a.accuracy == pytest.approx(0.82)
    assert a.error == pytest.approx(0.0282842712)  # of 0.80, 0.84 with n - 1
    assert a.score == pytest.approx(score(NET, sparsity=0.5).per_layer.total)
    assert "2 seeds" in a.detail
    assert other.error == 0 and len(other.detail.splitlines()) <= 4
    changed = points.changes(found[1].runs[0].result.config)
    assert changed == ["train.optimizer.learning_rate=0.2"]

  @pytest.mark.parametrize(
    "names, expected",
    [
      (["kd_s0", "kd_s1"], "kd"),
      (["kd_bits", "kd_bits_1"], "kd_bits"),
      (["runs/a/seed=3", "runs/a/seed=4"], "runs/a"),
      (["0003", "0004"], "0003"),
    ],
  )
  def test_names_of_seeds(self, names, expected):
    one = points.group([run(name, i) for i, name in enumerate(names)])
    assert [g.name for g in one] == [expected]

  def test_fields_that_change_no_number(self):
    both = [run("a", 0), run("b", 1)]
    both[1].result.config["data"]["dir"] = "elsewhere"
    assert len(points.group(both)) == 2
    assert len(points.group(both, ["data.dir"])) == 1
    assert len(points.group(both, ["data"])) == 1

  def test_names_and_links_differ(self):
    names = ["a b", "a-b", "A-B", "a-b-2", "é b", "ensemble of five"]
    found = points.group(
      [run(n, learning_rate=0.1 + i) for i, n in enumerate(names)]
    )
    assert [g.name for g in found[:5]] == names[:5]
    assert found[5].name == "ensemble of five-2"  # there is a published one
    slugs = [g.slug for g in found]
    assert len(set(slugs)) == 6 and slugs[1:4] == ["a-b-2", "a-b-3", "a-b-2-2"]
    made = sections.report([entry.Entry(g, None, "none.") for g in found])
    for slug in slugs:
      assert made.count(f'id="run-{slug}"') == 1

  def test_a_population_is_its_members(self):
    members = [member(i, 70 + 10 * i, 0.2 + i / 10) for i in range(3)]
    one = points.group([run("p", test_count=300, members=members)])[0]
    assert one.accuracies == (0.7, 0.8, 0.9)
    point = points.of_group(one, "per_layer")
    assert point[1:4] == pytest.approx((0.8, 0.3, 0.1))
    votes = {"majority": {"test_accuracy": 0.8, "test_loss": 1.0}}
    voted = run("e", members=members, votes=votes, vote="majority")
    assert points.group([voted])[0].accuracies == (0.8,)


class TestLayers:
  def test_bars_add_up_to_the_per_layer_score(self):
    found = layers.bars(result())
    figures = score(NET, sparsity=0.5)
    assert [x.path for x in found] == [x.path for x in NET.layers()]
    assert sum(x.params_term for x in found) == pytest.approx(
      figures.per_layer.params_term
    )
    assert sum(x.ops_term for x in found) == pytest.approx(
      figures.per_layer.ops_term
    )
    assert sum(x.macs for x in found) == figures.macs
    assert layers.bits(found[0]) == "8/4" and found[0].density == 0.5

  def test_an_ensemble_is_the_sum_over_members(self):
    wide = spec.with_bits(NET, ((".*", 8, 8),))
    charged = several.ensemble_score([(NET, None), (wide, None)])
    found = layers.bars(result(charged=charged))
    assert [x.path for x in found] == [x.path for x in NET.layers()]
    assert sum(x.total for x in found) == pytest.approx(charged.per_layer.total)
    assert layers.bits(found[1]) == "4–8/8"
    assert found[0].weights == 2 * 3 * 3 * 3 * 8


class TestEvidence:
  LABELS = np.array([0, 0, 1, 2, 2])
  LOGITS = np.log(
    [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1],
     [0.9, 0.08, 0.02], [0.5, 0.2, 0.3]]
  )  # fmt: skip

  def test_confusion(self):
    found = evidence.confusion(self.LOGITS.argmax(-1), self.LABELS, 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]

  def test_most_wrong(self):
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    found = evidence.most_wrong(
      self.LOGITS + 7, images, self.LABELS, np.arange(5) + 100
    )
    # By the probability of the right class: 0.02, then 0.3 twice, in order.
    assert [w.index for w in found] == [103, 101, 104]
    assert (found[0].label, found[0].answer) == (2, 0)
    assert found[0].p_label == pytest.approx(0.02)
    assert found[1].p_answer == pytest.approx(0.6)
    np.testing.assert_array_equal(found[2].image, images[4])
    png = evidence.image_png(found[0].image)
    np.testing.assert_array_equal(Image.open(io.BytesIO(png)), images[3])

  def test_masks(self):
    whole, part = np.ones((3, 3, 2, 4), bool), np.ones((3, 3, 2, 4), bool)
    part[0, :, 1, 2] = False
    depthwise = np.ones((3, 3, 1, 4), bool)
    depthwise[1, 1] = False
    tree = {
      "b": {"c": {"kernel": part}, "bn": {"scale": np.zeros(4, bool)}},
      "a": {"kernel": whole},
      "d": {"kernel": np.array(True)},
      "e": {"kernel": depthwise},
    }
    found = evidence.mask_maps(tree, ["e", "a", "b/c", "d"])
    assert list(found) == ["e", "b/c"]
    expected = np.ones((2, 4))
    expected[1, 2] = 2 / 3
    np.testing.assert_allclose(found["b/c"], expected)
    assert found["e"].shape == (9, 4) and found["e"][4].max() == 0

  def test_a_mask_as_an_image(self):
    kept = np.zeros((100, 200))
    kept[:50, 100:] = 1
    png = evidence.mask_png(kept)
    alpha = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3]
    assert alpha.shape == (64, 64) and len(png) < 3000
    assert (alpha[:31, 33:] == 255).all() and alpha[33:, :].max() == 0


class TestRuns:
  def test_found_below_a_study(self, tmp_path):
    for i, name in enumerate(("0000", "0001", "0002")):
      folder = tmp_path / "study" / "trials" / name
      (folder / "train").mkdir(parents=True)
      (folder / "config.json").write_text("{}")
      if i < 2:
        (folder / "result.json").write_text(json.dumps(values(i)))
    last = tmp_path / "study" / "trials" / "0001"
    lines = ['{"epoch": 1}', '{"epoch": 2, "loss": NaN}', "7", '{"epo']
    (last / "train" / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "study" / "speed").mkdir()
    (tmp_path / "study" / "speed" / "result.json").write_text('{"rows": 1}')
    found, remarks = runs.find([f"{tmp_path}/study", str(last)])
    assert [r.name for r in found] == ["0000", "0001"]
    assert found[1].metrics == {"train": [{"epoch": 1}]}
    assert remarks == [
      "no result of a run: speed",
      "not finished: trials/0002",
      "0001/train/metrics.jsonl, line 2: loss is nan, and not a number from"
      " -1e+15 to 1e+15, and 1 more",
    ]
    with pytest.raises(WorkdirError, match="0002 is not finished"):
      runs.find([str(last.parent / "0002")])
    with pytest.raises(WorkdirError, match="no result of a run: speed"):
      (tmp_path / "two").mkdir()
      (tmp_path / "study" / "speed").rename(tmp_path / "two" / "speed")
      runs.find([str(tmp_path / "two")])

  def test_names_of_any_bytes(self, tmp_path):
    for i, name in enumerate((b"caf\xe9", b"a\nb", b"$x_$ \\frac")):
      folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
      folder.mkdir()
      text = json.dumps(values(learning_rate=1 + i, device="half \ud800"))
      (folder / "result.json").write_text(text)
    found, remarks = runs.find([str(tmp_path)])
    assert remarks == []
    assert {r.name for r in found} == {"caf\ufffd", "a\ufffdb", "$x_$ \\frac"}
    made = sections.report(entries(*found)) + markdown.report(entries(*found))
    assert "half ?" in made and made.encode()

  def test_odd_results_are_left_out_and_the_others_shown(self, tmp_path):
    """Changes of any part of a result, each beside one that is whole."""
    draw = random.Random(0)
    members = [member(0, 70)]
    votes = {"majority": {"test_accuracy": 0.8, "test_loss": 1.0,
                          "validation_accuracy": None}}  # fmt: skip
    whole = values(1, members=members, votes=votes, vote="majority",
                   disagreement=[[0.0, 0.1], [0.1, 0.0]])  # fmt: skip
    odd = [None, math.nan, math.inf, -1, 0, 1e300, 10**400, True, "", "x", [],
           {}, [[1]], {"a": {}}]  # fmt: skip
    shown, left_out, pages = 0, 0, []
    for i in range(100):
      changed = copy.deepcopy(whole)
      places = list(_places(changed))
      parent, key = draw.choice(places)
      if draw.random() < 0.3:
        del parent[key]
      else:
        parent[key] = draw.choice(odd)
      folder = tmp_path / str(i)
      folder.mkdir()
      (folder / "result.json").write_text(json.dumps(changed))
      try:
        found, _ = runs.find([str(folder)])
      except WorkdirError as e:
        assert "result.json" in str(e)
        left_out += 1
        continue
      if shown % 10 == 0:  # a page takes 0.4 s
        pages.append([run("good")])
      pages[-1] += found
      shown += 1
    assert shown > 30 and left_out > 15
    for one in pages:
      made = sections.report(entries(*one)) + markdown.report(entries(*one))
      assert not re.findall(r"\b(nan|inf)\b", made), [r.name for r in one]

  @pytest.mark.parametrize(
    "line, said",
    [
      (
        '{"epoch": 1, "validation_accuracy": NaN}',
        "validation_accuracy is nan",
      ),
      ('{"epoch": 1, "loss": 1e999}', "loss is inf"),
      ('{"epoch": 1, "loss": "low"}', "loss is 'low'"),
      ('{"epoch": -1}', "epoch is -1"),
      ('{"loss": 1}', "it lacks epoch"),
      ('{"epoch": 1, "validation_accuracies": [0.5]}', "it has 1 members"),
      ("[1]", "it is list, expected an object"),
      ("[" * 9999, "it is nested too deeply"),
    ],
  )
  def test_odd_lines(self, line, said, tmp_path):
    good = '{"epoch": 2, "loss": 0.5}'
    text = f"{good}\n{line}\n{good}\n"
    (tmp_path / "train.jsonl").write_text(text)
    rows, remarks = runs.read_metrics(tmp_path, result())
    assert rows == {"train": [json.loads(good)] * 2}
    assert len(remarks) == 1 and f"train.jsonl, line 2: {said}" in remarks[0]

  def test_three_hundred_runs(self, tmp_path):
    for i in range(300):
      folder = tmp_path / "runs" / f"run {i}"
      folder.mkdir(parents=True)
      text = json.dumps(values(learning_rate=1 + i, correct=i % 100))
      (folder / "result.json").write_text(text)
      rows = [{"epoch": e, "loss": 1 / (e + 1), "validation_accuracy": 0.5}
              for e in range(30)]  # fmt: skip
      lines = "".join(json.dumps(row) + "\n" for row in rows)
      if i % 10 == 0:  # whose curves take a tenth of a second each
        (folder / "train.jsonl").write_text(lines)
    done = subprocess.run(
      [sys.executable, "-m", "jaxr18.report", "runs", "--quick"],
      capture_output=True, text=True, cwd=tmp_path, timeout=300,
      env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.M)
    assert "jaxr18.report.sections" in imported and "jax" not in imported
    made = (tmp_path / "report" / "index.html").read_text()
    assert len(re.findall('id="run-[^"]+"', made)) == 300

  @pytest.mark.parametrize(
    "arguments, status, said",
    [
      ([], 2, "give one or more WORKDIRs"),
      (["nowhere", "--out=x"], 1, "nowhere holds no run"),
      (["nowhere", "--figure=all"], 2, "per_network|per_layer|on_disk"),
    ],
  )
  def test_refusals(self, arguments, status, said, tmp_path):
    done = subprocess.run(
      [sys.executable, "-m", "jaxr18.report", *arguments],
      capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())

  def test_what_cannot_be_written_is_told_before_the_work(self, tmp_path):
    (tmp_path / "out" / "report.md").mkdir(parents=True)
    runs = pathlib.Path(__file__).parents[2] / "docs" / "results"
    done = subprocess.run(
      [sys.executable, "-m", "jaxr18.report", str(runs / "quant_4"),
       "--quick", "--out=out"],
      capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "report.md: it is a folder" in done.stderr
    # Nothing is half written: no page without its report.
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.md"]


class TestDrawing:
  def test_labels_cover_nothing(self):
    draw = random.Random(1)
    spots = [(draw.uniform(0, 400), draw.uniform(0, 300)) for _ in range(40)]
    box, size = (0, 0, 400, 300), (60, 12)
    placed = places.place_labels(spots, [size] * 40, range(40), box)
    assert 5 < len(placed) < 40
    boxes = [(x, y, x + 60, y + 12) for x, y in placed.values()]
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    apart = lambda a, b: (
      a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    )
    for i, one in enumerate(boxes):
      assert one[0] >= 0 and one[1] >= 0 and one[2] <= 400 and one[3] <= 300
      assert all(apart(one, other) for other in marks + boxes[:i])

  def test_a_label_is_nearest_to_its_own_point(self):
    draw = random.Random(2)
    spots = [(draw.uniform(0, 400), draw.uniform(0, 300)) for _ in range(80)]
    placed = places.place_labels(spots, [(30, 10)] * 80, range(80),
                                 (0, 0, 400, 300), radius=2.0)  # fmt: skip
    assert len(placed) > 20

    def away(spot, left, top):
      x, y = spot
      return math.hypot(
        x - min(max(x, left), left + 30), y - min(max(y, top), top + 10)
      )

    for i, corner in placed.items():
      others = [away(spot, *corner) for spot in spots]
      assert others[i] <= min(others) + 1e-9

  def test_ticks(self):
    assert places.ticks(0.2, 10.3) == [2, 4, 6, 8, 10]
    assert places.ticks(81.1, 82.2) == [81.2, 81.4, 81.6, 81.8, 82, 82.2]
    assert list(places.log_ticks(0.02, 1)) == [0.02, 0.05, 0.1, 0.2, 0.5, 1]
    assert list(places.log_ticks(0.0012, 0.0035)) == [0.0015, 0.002, 0.003]
    assert list(places.log_ticks(0.08, 0.25)) == [0.08, 0.09, 0.1, 0.15, 0.2]

  def test_names_are_text_and_no_markup(self):
    bad = "</script><b>&'\""
    made = page.document(bad, page.pareto([Point(bad, 0.9, 0.1, detail=bad)]))
    assert bad not in made and "<b>" not in made
    assert made.count("</script>") == 2  # the data's and the page's

  def test_markdown_shows_names_as_they_are(self):
    bad = "</b>*a* _b_ `c` [d](e) & &amp; | ~f~ # \\ $g$ <script>"
    both = entries(run(bad, command="```\n# x"), run("- 1. x", 0, 90, 2.0))
    text = markdown.report(both, remarks=[f"1. {bad}"])
    shown = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert shown.count("<h1>") == 1 and shown.count("<h2>") == 3
    assert f"<h2>{html.escape(bad)}</h2>" in shown
    assert "<h2>- 1. x</h2>" in shown
    assert f"<li>1. {html.escape(bad)}</li>" in shown
    assert f"<td>{html.escape(bad)}</td>" in shown
    assert "```\n# x\n" in shown
    for markup in ("<script", "<em>", "<s>", "<a "):
      assert markup not in shown

  def test_axes_without_a_goal_have_ticks(self):
    near = [Point("a", 0.953, 0.1), Point("b", 0.957, 0.1)]
    f = places.frame(near, 900, 470, None)
    assert len(places.accuracy_ticks(f)) >= 3
    assert len(places.score_ticks(f)) >= 3
    assert not f.goal_inside

  def test_a_single_perfect_network(self):
    made = page.pareto([Point("all right", 1.0, 0.1, 0.01)])
    assert "nan" not in made and "100.00% ± 1.00 at a score of 0.1" in made

  def test_curves_go_on_from_phase_to_phase(self):
    row = lambda e, v: {"epoch": e, "loss": 1 / e, "validation_accuracy": v}
    metrics = {
      "dense": [row(1, 0.5), row(2, 0.7)],
      "prune": [row(1, 0.6), row(2, 0.8), row(3, 0.75)],
    }
    first, second = curves.curves(metrics, curves.ACCURACIES)
    assert first.points == [(1, 0.5), (2, 0.7)]
    assert second.points == [(3, 0.6), (4, 0.8), (5, 0.75)]
    assert (
      "prune: validation accuracy from 60.00% after epoch 1 to 75.00% after"
      " epoch 3, at its best 80.00% after epoch 2."
    ) in curves.summary(metrics)
    assert curves.curves(metrics, {"nothing": "x"}) == []
