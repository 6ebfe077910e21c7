(() => {
  "use strict";
  const root = document.documentElement;
  const keep = (value) => {
    try { localStorage.setItem("jaxr18-theme", value); } catch { /* a file */ }
  };
  try {
    const kept = localStorage.getItem("jaxr18-theme");
    if (kept) root.dataset.theme = kept;
  } catch { /* a file */ }
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggle = document.getElementById("theme");
  const say = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    keep(root.dataset.theme);
    say();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
  say();

  const tip = document.getElementById("tip");
  let shown = null;
  let pinned = false;

  function hide() {
    if (shown) shown.classList.remove("on");
    shown = null;
    pinned = false;
    tip.hidden = true;
    tip.classList.remove("pinned");
  }

  function show(point, pin) {
    if (shown && shown !== point) shown.classList.remove("on");
    shown = point;
    pinned = pin;
    const one = about.get(point);
    tip.replaceChildren();
    const add = (name, className, words) => {
      const e = document.createElement(name);
      if (className) e.className = className;
      e.textContent = words;
      tip.append(e);
      return e;
    };
    add("strong", "", one.label);
    add("div", "", one.said);
    if (one.detail) add("div", "lines", one.detail);
    if (one.link) add("a", "", "All about it").href = one.link;
    point.classList.add("on");
    tip.classList.toggle("pinned", pin);
    tip.hidden = false;
    const at = point.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const most = root.clientWidth - size.width - 8;
    let left = at.right + 12;
    if (left > most) left = at.left - size.width - 12;
    if (left < 8) left = Math.max(8, Math.min(at.left - size.width / 2, most));
    let top = at.top - size.height / 2;
    const beside = left >= at.right || left + size.width <= at.left;
    if (!beside) {
      top = at.bottom + 12;
      if (top + size.height > innerHeight - 8) top = at.top - size.height - 12;
    }
    top = Math.max(8, Math.min(top, innerHeight - size.height - 8));
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  }

  // The nearest point, since points lie close to each other.
  function nearest(points, event, within) {
    let best = null;
    let least = within;
    for (const point of points) {
      if (point.classList.contains("off")) continue;
      const at = point.getBoundingClientRect();
      const d = Math.hypot((at.left + at.right) / 2 - event.clientX,
        (at.top + at.bottom) / 2 - event.clientY);
      if (d < least) { least = d; best = point; }
    }
    return best;
  }

  // Each drawing of a chart: its points by what they say, and all marks and
  // labels of each series.
  const about = new Map();

  function prepare(chart, svg, size) {
    const all = JSON.parse(chart.querySelector("script").textContent);
    const marks = new Map();
    for (const e of svg.querySelectorAll("[aria-label]")) {
      const label = e.getAttribute("aria-label");
      marks.set(label, [...(marks.get(label) || []), e]);
    }
    const texts = new Map([...svg.querySelectorAll("text")]
      .map((e) => [e.textContent, e]));
    const points = [];
    for (const one of all) {
      const own = marks.get(one.aria) || [];
      for (const e of own) {
        e.dataset.series = one.series;
        if (e.getAttribute("role") !== "graphics-symbol"
          || e.localName !== "path" || e.getAttribute("aria-roledescription")
          === "rule") continue;
        about.set(e, one);
        points.push(e);
        e.setAttribute("tabindex", "0");
        e.setAttribute("role", one.link ? "link" : "img");
        e.classList.add("point");
      }
      const label = texts.get(one.short[size]);
      if (label) label.dataset.series = one.series;
    }
    return points;
  }

  for (const [size, part] of ["wide", "narrow"].entries())
  for (const svg of document.querySelectorAll(`.chart .${part} > svg`)) {
    const points = prepare(svg.closest(".chart"), svg, size);
    svg.addEventListener("pointermove", (event) => {
      if (pinned || event.pointerType !== "mouse") return;
      const point = nearest(points, event, 18);
      if (point) show(point, false); else hide();
    });
    svg.addEventListener("pointerleave", () => { if (!pinned) hide(); });
    svg.addEventListener("click", (event) => {
      const point = nearest(points, event, 26);
      if (point && !(pinned && point === shown)) show(point, true);
      else hide();
      event.stopPropagation();
    });
    // Not at the SVG: Chromium would let Tab stop at that itself.
    const box = svg.parentElement;
    box.addEventListener("focusin", (event) => {
      const point = event.target.closest(".point");
      if (point && point.matches(":focus-visible")) show(point, false);
    });
    box.addEventListener("focusout", () => { if (!pinned) hide(); });
    box.addEventListener("keydown", (event) => {
      const point = event.target.closest(".point");
      if (!point || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      if (pinned && point === shown) {
        const link = tip.querySelector("a");
        if (link && event.key === "Enter") link.click();
        hide();
      } else {
        show(point, true);
      }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#tip") || event.target.closest("a")) hide();
  });
  addEventListener("scroll", () => {
    if (shown && (pinned || document.activeElement === shown)) {
      show(shown, pinned);
    } else {
      hide();
    }
  });

  // What a link leads to may lie in a closed part.
  function reveal() {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    const part = target && target.closest("details");
    if (part) {
      part.open = true;
      target.scrollIntoView();
    }
  }
  addEventListener("hashchange", reveal);
  reveal();

  for (const chart of document.querySelectorAll(".chart")) {
    for (const button of chart.querySelectorAll("button[data-series]")) {
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        hide();
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", on);
        const of = `svg [data-series="${button.dataset.series}"]`;
        for (const e of chart.querySelectorAll(of)) {
          e.classList.toggle("off", !on);
        }
      });
    }
  }

  // A column's button sorts its table's rows: numbers by size, the largest
  // first, texts by name.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    const value = (row, column) => {
      const words = row.cells[column].textContent.trim();
      const number = Number.parseFloat(words.replaceAll(",", ""));
      return column && !Number.isNaN(number) ? number : words;
    };
    for (const [column, th] of [...table.tHead.rows[0].cells].entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      while (th.firstChild && th.firstChild.localName !== "small") {
        button.append(th.firstChild);
      }
      if (!button.textContent.trim()) continue;
      th.prepend(button);
      button.addEventListener("click", () => {
        const before = th.getAttribute("aria-sort");
        const rows = [...body.rows];
        const numbers = rows.some((r) => typeof value(r, column) === "number");
        const down = before ? before === "ascending" : numbers;
        for (const other of table.tHead.rows[0].cells) {
          other.removeAttribute("aria-sort");
        }
        th.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows.sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          const order = typeof x === "number" && typeof y === "number"
            ? x - y
            : String(x).localeCompare(String(y), "en", {numeric: true});
          return down ? -order : order;
        });
        body.append(...rows);
      });
    }
  }

  const compare = document.getElementById("compare");
  if (compare) {
    compare.hidden = false;
    const runs = JSON.parse(compare.querySelector("script").textContent);
    const [first, second] = compare.querySelectorAll("select");
    for (const select of [first, second]) {
      select.append(...runs.names.map((name, i) => new Option(name, i)));
      select.addEventListener("change", differences);
    }
    second.selectedIndex = 1;
    differences();

    function differences() {
      const two = [first, second].map((s) => runs.own[s.value]);
      const fields = [...new Set(two.flatMap(Object.keys))]
        .filter((field) => two[0][field] !== two[1][field]);
      const head = compare.querySelectorAll("thead th");
      [first, second].forEach((s, i) => {
        head[i + 1].textContent = runs.names[s.value];
      });
      compare.querySelector("tbody").replaceChildren(...fields.map((field) => {
        const row = document.createElement("tr");
        const name = document.createElement("th");
        name.scope = "row";
        name.textContent = field;
        row.append(name);
        for (const own of two) {
          row.insertCell().textContent = own[field] ?? "";
        }
        return row;
      }));
      compare.querySelector("[role=status]").textContent = fields.length
        ? `${fields.length} values differ, and ${Object.keys(runs.shared).length}`
          + " are the same in all runs."
        : "Nothing differs.";
    }
  }
})();
