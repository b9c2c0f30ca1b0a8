"use strict";
// Values of the charts under the pointer or, with the focus on a chart, by the arrow keys. Charts of
// one group have a common cursor: the same step in all.

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const charts = new Map();

  function prepare(svg) {
    const data = JSON.parse(svg.dataset.cursor), [left, right, top, bottom] = data.plot;
    const line = document.createElementNS(SVG, "line");
    line.setAttribute("class", "cursor");
    svg.append(line);
    const said = document.createElement("output");
    said.className = "value";
    svg.before(said);
    const [low, high] = data.vertical ? [top, bottom] : [left, right];
    const along = (value) => low + (value - data.ends[0]) / (data.ends[1] - data.ends[0]) * (high - low);
    charts.set(svg, { data, line, said, along, places: data.at.map(along) });
  }

  // The position of the value nearest to a place in the units of the view box.
  function nearest(places, place) {
    let best = 0;
    places.forEach((own, i) => { if (Math.abs(own - place) < Math.abs(places[best] - place)) best = i; });
    return best;
  }

  function mark(svg, i) {
    const chart = charts.get(svg), { data, line, said, places } = chart;
    const [left, right, top, bottom] = data.plot, at = places[i];
    const ends = data.vertical ? [left, right, at, at] : [at, at, top, bottom];
    ["x1", "x2", "y1", "y2"].forEach((name, k) => line.setAttribute(name, ends[k]));
    said.textContent = (data.lead ? `${data.lead} ${data.at[i].toLocaleString("en-US")}: ` : "") + data.texts[i];
    chart.i = i;
  }

  // All charts of the group that count the same thing, at the value nearest to this one.
  function point(svg, i) {
    const { data } = charts.get(svg), group = data.lead && svg.closest("[data-cursors]");
    mark(svg, i);
    for (const other of group ? group.querySelectorAll("svg[data-cursor]") : []) {
      const own = charts.get(other);
      if (other !== svg && own.data.lead === data.lead) mark(other, nearest(own.data.at, data.at[i]));
    }
  }

  function clear(svg) {
    const group = svg.closest("[data-cursors]");
    for (const own of group ? group.querySelectorAll("svg[data-cursor]") : [svg]) {
      const { line, said } = charts.get(own);
      for (const name of ["x1", "x2", "y1", "y2"]) line.removeAttribute(name);
      said.textContent = "";
    }
  }

  for (const svg of document.querySelectorAll("svg[data-cursor]")) {
    prepare(svg);
    const { data, places } = charts.get(svg);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
      const style = getComputedStyle(svg), padding = parseFloat(style.paddingTop);
      const place = data.vertical
        ? (event.clientY - box.top - padding) / (box.height - padding) * view.height
        : (event.clientX - box.left) / box.width * view.width;
      point(svg, nearest(places, place));
    });
    svg.addEventListener("pointerleave", () => { if (document.activeElement !== svg) clear(svg); });
    svg.addEventListener("focus", () => point(svg, charts.get(svg).i ?? 0));
    svg.addEventListener("blur", () => clear(svg));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const i = charts.get(svg).i ?? 0;
      point(svg, Math.min(places.length - 1, Math.max(0, i + step)));
    });
  }
})();
