"use strict";
// Rows of the same prompt and seed across models. Prompts come from strangers: they are set as text
// and as attributes, never as markup.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PROMPT = 0, SEED = 1, IMAGES = 2, SCORES = 3;
  const section = document.getElementById("rows");
  const part = (name, root = section) => root.querySelector(`[data-part="${name}"]`);
  const metric = part("metric"), model = part("model"), turn = part("turn"), search = part("search");
  const list = part("list"), status = part("status"), pagers = section.querySelectorAll(".pager");
  const names = data.models.map(([name]) => name), base = names.indexOf(data.base);
  const count = (value) => value.toLocaleString("en-US");
  let order = data.rows, rising = false, page = 0;

  // How much better than the base, whichever way the metric points; null where one has no score.
  function gain(row, at, which) {
    const [own, reference] = [row[SCORES][at][which], row[SCORES][base][which]];
    if (own === null || reference === null) return null;
    return data.metrics[which][3] ? reference - own : own - reference;
  }

  function arrange() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    order = data.rows.filter((row) => words.every((word) => row[PROMPT].toLowerCase().includes(word)));
    if (metric.value !== "") {
      const which = Number(metric.value), at = names.indexOf(model.value), sign = rising ? 1 : -1;
      const keys = new Map(order.map((row) => [row, gain(row, at, which)]));
      order.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (x === null || y === null) return (x === null) - (y === null);  // no score comes last
        return sign * (x - y);
      });
    }
    turn.disabled = model.disabled = metric.value === "";
    turn.textContent = rising ? "Losses first (turn round)" : "Wins first (turn round)";
    page = 0;
    show();
  }

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function scores(row, at) {
    const caption = element("figcaption");
    caption.append(element("b", "", data.models[at][1]));
    const chosen = metric.value === "" ? data.metrics.map((_, which) => which).slice(0, 3) : [Number(metric.value)];
    for (const which of chosen) {
      const [, label, digits] = data.metrics[which], score = row[SCORES][at][which];
      const line = element("span", "", `${label} ${score === null ? "no score" : score.toFixed(digits)}`);
      line.style.display = "block";
      const better = at === base ? null : gain(row, at, which);
      if (better !== null) {
        const sign = data.metrics[which][3] ? -1 : 1, text = (sign * better).toFixed(digits);
        const shown = Number(text) === 0 ? "+" + Math.abs(text).toFixed(digits) : Number(text) > 0 ? "+" + text : text;
        const seen = sign * Number(text); // what is shown as no gain has the colour of none
        line.append(" ", element("span", seen > 0 ? "better" : seen < 0 ? "worse" : "flat", `(${shown})`));
      }
      caption.append(line);
    }
    return caption;
  }

  function card(row) {
    const figure = element("figure", "card"), title = element("figcaption", "", `${row[PROMPT]} `);
    title.append(element("span", "small soft", `· seed ${row[SEED]}`));
    const models = element("div", "models");
    models.style.setProperty("--columns", data.models.length);
    data.models.forEach(([, label], at) => {
      const own = element("figure");
      if (row[IMAGES][at]) {
        const image = element("img", data.pixelated ? "pixelated" : "smooth");
        [image.width, image.height] = data.side;
        image.alt = `${label}: ${row[PROMPT]}`;
        image.src = row[IMAGES][at];
        const link = element("a");
        link.href = image.src;
        link.dataset.zoom = "";
        link.append(image);
        own.append(link);
      } else {
        own.append(element("div", "absent", "not made"));
      }
      own.append(scores(row, at));
      models.append(own);
    });
    figure.append(title, models);
    return figure;
  }

  function show() {
    const pages = Math.max(1, Math.ceil(order.length / data.size));
    const first = page * data.size, shown = order.slice(first, first + data.size);
    list.replaceChildren(...shown.map(card));
    status.textContent = shown.length
      ? `${count(first + 1)} to ${count(first + shown.length)} of ${count(order.length)}`
      : "no prompt holds these words";
    for (const pager of pagers) {
      part("place", pager).textContent = `page ${count(page + 1)} of ${count(pages)}`;
      for (const [name, target] of [["first", 0], ["back", page - 1], ["next", page + 1], ["last", pages - 1]]) {
        const button = part(name, pager);
        button.disabled = target === page || target < 0 || target >= pages;
        button.onclick = () => { page = target; show(); section.scrollIntoView(); };
      }
      pager.hidden = pages === 1;
    }
  }

  metric.addEventListener("change", arrange);
  model.addEventListener("change", arrange);
  turn.addEventListener("click", () => { rising = !rising; arrange(); });
  search.addEventListener("input", arrange);
  arrange();
  part("controls").hidden = false;
})();
