"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const samples = [...document.querySelectorAll(".tokens")];
  const quantile = $("quantile"), rate = $("rate"), said = $("said"), detail = $("detail");
  const all = [...document.querySelectorAll(".t")];
  const domains = Map.groupBy(all, (t) => t.closest("article").dataset.domain);

  // As in training, a quantile is of each domain's own entropies (here: of the tokens on this page).
  const update = () => {
    const thresholds = [];
    for (const [domain, tokens] of domains) {
      const sorted = tokens.map((t) => +t.dataset.h).sort((a, b) => a - b);
      const place = Math.min(sorted.length - 1, Math.floor(quantile.value * sorted.length));
      const threshold = +quantile.value >= 1 ? Infinity : sorted[place];
      thresholds.push(`${domain} ${threshold === Infinity ? "all" : threshold.toFixed(3) + " nats"}`);
      for (const t of tokens) {
        const candidate = +t.dataset.h < threshold;
        t.classList.toggle("candidate", candidate);
        t.classList.toggle("dropped", candidate && +t.dataset.u < +rate.value);
      }
    }
    const dropped = document.querySelectorAll(".t.dropped").length;
    said.textContent = `Quantile ${(+quantile.value).toFixed(2)} (${thresholds.join(", ")}), ` +
      `drop rate ${(+rate.value).toFixed(2)}: ${(100 * dropped / all.length).toFixed(1)}% of these tokens are dropped.`;
  };

  const show = (t) => {
    const state = t.classList.contains("dropped") ? "dropped"
      : t.classList.contains("candidate") ? "below the threshold, kept" : "kept";
    detail.textContent = `“${t.dataset.t}” · ${t.dataset.k} · entropy ${t.dataset.h} nats · NLL ${t.dataset.n} nats · ${state}`;
  };

  for (const sample of samples) {
    const tokens = [...sample.querySelectorAll(".t")];
    let current = 0;
    const move = (index, focus) => {
      tokens[current].tabIndex = -1;
      current = Math.max(0, Math.min(tokens.length - 1, index));
      tokens[current].tabIndex = 0;
      if (focus) tokens[current].focus();
    };
    tokens.forEach((t, i) => {
      t.addEventListener("focus", () => { move(i, false); show(t); });
      t.addEventListener("click", () => move(i, true));
      t.addEventListener("mouseenter", () => show(t));
    });
    sample.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      move(current + steps[event.key], true);
    });
    move(0, false);
  }
  quantile.addEventListener("input", update);
  rate.addEventListener("input", update);
  document.body.classList.add("live");
})();
