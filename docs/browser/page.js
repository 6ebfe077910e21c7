// Runs one of the networks of ../results/ in ONNX Runtime Web, on one picture.

const NETWORKS = ["train_on", "three_bits", "cut_blocks", "integers", "train_on_small", "three_bits_small",
  "resnet8"];
const CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
  "horse", "ship", "truck"];
const SIZE = 32;
const PAPER = "#dfe8f0";
const at = (id) => document.getElementById(id);
const say = (text) => { at("status").textContent = text; };

const canvas = at("picture");
const pixels = canvas.getContext("2d", {willReadFrequently: true});
const place = {x: SIZE / 2, y: SIZE / 2};
const clear = () => {
  pixels.fillStyle = PAPER;
  pixels.fillRect(0, 0, SIZE, SIZE);
};

// A ship at sea, to begin with.
const begin = () => {
  clear();
  const shapes = [["#2f6690", 0, 21, 32, 11], ["#8c2f24", 4, 18, 25, 5],
    ["#f4f4f2", 10, 13, 14, 5], ["#30343a", 14, 8, 3, 5],
    ["#30343a", 19, 9, 2, 4], ["#4d86ad", 0, 24, 32, 1]];
  for (const [color, ...box] of shapes) {
    pixels.fillStyle = color;
    pixels.fillRect(...box);
  }
};

let ort, session, times = [], busy = false, again = false;

const cell = (row, text, kind = "") => {
  const td = row.insertCell();
  td.className = kind;
  td.textContent = text;
  return td;
};
const bar = (td, share, kind) => {
  const span = document.createElement("span");
  span.className = `bar ${kind}`;
  span.style.width = share;
  td.prepend(span);
  return span;
};

const show = (logits) => {
  const body = at("logits").tBodies[0];
  const top = Math.max(...logits), most = Math.max(...logits.map(Math.abs), 1);
  const parts = logits.map((z) => Math.exp(z - top));
  const all = parts.reduce((a, b) => a + b);
  const low = Math.max(0, -Math.min(...logits)), high = Math.max(0, top);
  const percent = (x) => `${(100 * x / (low + high || most)).toFixed(2)}%`;
  body.replaceChildren();
  logits.forEach((z, i) => {
    const row = body.insertRow();
    row.className = z === top ? "first" : "";
    cell(row, CLASSES[i]);
    const span = bar(cell(row, ""), percent(Math.abs(z)), z < 0 ? "minus" : "");
    span.style.marginLeft = percent(z < 0 ? low + z : low);
    const number = cell(row, "", "number");
    const data = number.appendChild(document.createElement("data"));
    data.value = z;
    data.textContent = z.toFixed(2).replace("-", "\u2212");
    cell(row, `${(100 * parts[i] / all).toFixed(1)}%`, "number");
  });
  const best = logits.indexOf(top);
  at("answer").textContent =
    `${CLASSES[best]}, ${(100 * parts[best] / all).toFixed(0)}%`;
};

// One at a time; what is drawn meanwhile is run once more at the end.
const run = async () => {
  again = busy;
  if (busy || !session) return;
  busy = true;
  try {
    const rgba = pixels.getImageData(0, 0, SIZE, SIZE).data;
    const images = Uint8Array.from(rgba.filter((_, i) => i % 4 < 3));
    const tensor = new ort.Tensor("uint8", images, [1, SIZE, SIZE, 3]);
    const start = performance.now();
    const {logits} = await session.run({images: tensor});
    times = [...times, performance.now() - start].slice(-50);
    show([...logits.data]);
  } finally {
    busy = false;
  }
  const middle = times.toSorted((a, b) => a - b)[times.length >> 1];
  at("time").textContent = `${middle.toFixed(1)} ms for a picture`
    + (times.length > 1 ? `, the median of ${times.length}.` : ".");
  if (again) await run();
};

const table = (rows) => {
  const body = at("layers").tBodies[0];
  body.replaceChildren();
  for (const layer of rows) {
    const row = body.insertRow();
    cell(row, layer.path);
    for (const bits of [layer.w_bits, layer.a_bits]) {
      bar(cell(row, bits), `${Math.min(bits, 8) * 0.4}rem`, "");
    }
    cell(row, layer.kernel_shape.join("\u00d7"));
    cell(row, layer.weights.toLocaleString("en"), "number");
    cell(row, layer.macs.toLocaleString("en"), "number");
  }
};

const fetched = async (file) => {
  const answer = await fetch(new URL(`../results/${file}`, import.meta.url));
  if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
  return answer;
};

const open = async (name) => {
  say(`Loading ${name} ...`);
  session = undefined;
  try {
    const result = await (await fetched(`${name}/result.json`)).json();
    const file = await (await fetched(`${name}/network.onnx`)).arrayBuffer();
    const opened = await ort.InferenceSession.create(file,
      {executionProviders: ["wasm"]});
    if (at("network").value !== name) return;  // another was chosen meanwhile
    session = opened;
    // Results of before version 3 have its older name.
    const score = result.score.per_layer ?? result.score.exact;
    at("about").textContent =
      `${(100 * result.test_accuracy).toFixed(2)}% of the test images right,`
      + ` score ${score.total.toFixed(4)},`
      + ` ${(file.byteLength / 1000).toFixed(0)} kB`;
    table(result.score.rows);
    await run();  // the first one is slower
    times = [];
    await run();
    say("");
    document.body.dataset.network = name;
  } catch (error) {
    say(`${name} cannot be run: ${error.message}`);
  }
};

const paint = (x, y) => {
  const brush = Number(at("brush").value);
  pixels.fillStyle = at("color").value;
  pixels.fillRect(Math.round(x - brush / 2), Math.round(y - brush / 2),
    brush, brush);
};
const painted = (event) => {
  const box = canvas.getBoundingClientRect();
  const between = event.getCoalescedEvents?.() ?? [];  // none of a press
  for (const e of between.length ? between : [event]) {
    paint((e.clientX - box.left) / box.width * SIZE,
      (e.clientY - box.top) / box.height * SIZE);
  }
  run();
};
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  painted(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (event.buttons & 1) painted(event);
});
const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
  ArrowDown: [0, 1]};
canvas.addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!step && event.key !== " ") return;
  event.preventDefault();
  if (step) {
    place.x = Math.min(SIZE, Math.max(0, place.x + step[0]));
    place.y = Math.min(SIZE, Math.max(0, place.y + step[1]));
  } else {
    paint(place.x, place.y);
    run();
  }
  at("place").textContent = `At column ${place.x}, row ${place.y}.`;
});
at("clear").addEventListener("click", () => { clear(); run(); });

// The middle square of a picture, as 32 by 32 pixels.
const take = async (file) => {
  try {
    const image = await createImageBitmap(file);
    const side = Math.min(image.width, image.height);
    pixels.imageSmoothingQuality = "high";
    clear();
    pixels.drawImage(image, (image.width - side) / 2,
      (image.height - side) / 2, side, side, 0, 0, SIZE, SIZE);
    say("");
    await run();
  } catch {
    say(`${file.name} is not a picture that this browser reads; PNG, JPEG and`
      + " WebP are.");
  }
};
at("file").addEventListener("change", ({target}) => {
  if (target.files[0]) take(target.files[0]);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind.length > 8);
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) take(file);
  });
}
at("again").addEventListener("click", async () => {
  times = [];
  for (let i = 0; i < 50; i += 1) await run();
});
at("network").append(...NETWORKS.map((name) => new Option(name)));
at("network").addEventListener("change", () => open(at("network").value));

begin();
try {
  ort = await import("./vendor/ort.wasm.bundle.min.mjs");
} catch {
  say("ONNX Runtime Web is not beside this page. `python -m"
    + " docs.browser.vendor` in the repository fetches it, and needs npm.");
}
if (ort) {
  ort.env.wasm.numThreads = 1;  // more need headers that a plain server lacks
  ort.env.wasm.wasmPaths = {
    wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href,
  };
  await open(NETWORKS[0]);
}
