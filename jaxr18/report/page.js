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
    const chart = point.closest(".chart");
    const all = JSON.parse(chart.querySelector("script").textContent);
    const one = all[Number(point.dataset.point)];
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
    const at = point.querySelector(".mark").getBoundingClientRect();
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
  function nearest(svg, event, within) {
    let best = null;
    let least = within;
    for (const point of svg.querySelectorAll(".point:not(.off)")) {
      const at = point.querySelector(".mark").getBoundingClientRect();
      const d = Math.hypot((at.left + at.right) / 2 - event.clientX,
        (at.top + at.bottom) / 2 - event.clientY);
      if (d < least) { least = d; best = point; }
    }
    return best;
  }

  for (const svg of document.querySelectorAll("svg.scatter")) {
    svg.addEventListener("pointermove", (event) => {
      if (pinned || event.pointerType !== "mouse") return;
      const point = nearest(svg, event, 18);
      if (point) show(point, false); else hide();
    });
    svg.addEventListener("pointerleave", () => { if (!pinned) hide(); });
    svg.addEventListener("click", (event) => {
      const point = nearest(svg, event, 26);
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
        const of = `svg.scatter [data-series="${button.dataset.series}"]`;
        for (const e of chart.querySelectorAll(of)) {
          e.classList.toggle("off", !on);
        }
      });
    }
  }
})();
