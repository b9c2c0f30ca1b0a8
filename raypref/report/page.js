"use strict";
// The gallery of pairs and the comparison of two models. Captions come from strangers: they are set
// as text and as attributes, never as markup. Without this script the rest of the page stands.

(() => {
  const part = (root, name) => root.querySelector(`[data-part="${name}"]`);
  const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));
  const count = (value) => value.toLocaleString("en-US");

  // A picture beside the page can be missing: the page was sent or stored alone.
  document.addEventListener("error", (event) => {
    if (event.target instanceof HTMLImageElement) event.target.classList.add("gone");
  }, true);

  function gallery(section) {
    const data = JSON.parse(document.getElementById("pairs-data").textContent);
    const PROMPT = 0, RANK = 1, NUMBERS = 2, NOTES = 3, IMAGES = 4;
    const keys = { rank: (pair) => pair[RANK] };
    data.numbers.forEach(({ key }, place) => { keys[key] = (pair) => pair[NUMBERS][place]; });
    const list = part(section, "list"), template = section.querySelector("template");
    const sort = part(section, "sort"), turn = part(section, "turn");
    const search = part(section, "search"), status = part(section, "status");
    const pagers = section.querySelectorAll(".pager");
    let order = data.pairs, falling = false, page = 0;

    function arrange() {
      const key = keys[sort.value], sign = falling ? -1 : 1;
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      order = data.pairs
        .filter((pair) => words.every((word) => pair[PROMPT].toLowerCase().includes(word)))
        .sort((a, b) => sign * (key(a) - key(b)) || a[RANK] - b[RANK]);
      turn.textContent = falling ? "Highest first (turn round)" : "Lowest first (turn round)";
      page = 0;
      show();
    }

    function card(pair) {
      const node = template.content.cloneNode(true);
      data.kinds.forEach(([name, , words], place) => {
        const image = part(node, name);
        image.width = image.height = data.side;
        image.className = data.pixelated ? "pixelated" : "smooth";
        image.alt = `${words}: ${pair[PROMPT]}`;
        image.src = pair[IMAGES + 2 * place];
        image.parentNode.href = pair[IMAGES + 2 * place + 1];
        part(node, `${name}-score`).textContent = pair[NOTES][place];
      });
      part(node, "prompt").textContent = part(node, "prompt").title = pair[PROMPT];
      part(node, "rank").textContent = count(pair[RANK]);
      if (data.candidates) {
        const page = Math.ceil(pair[RANK] / data.size);
        part(node, "candidates").href = data.candidates.replace("{page}", page).replace("{pair}", pair[RANK]);
      }
      data.numbers.filter((own) => own.shown).forEach((own) => {
        part(node, own.key).textContent = number(keys[own.key](pair), own.digits);
      });
      return node;
    }

    function show() {
      const pages = Math.max(1, Math.ceil(order.length / data.size));
      const first = page * data.size, shown = order.slice(first, first + data.size);
      list.replaceChildren(...shown.map(card));
      status.textContent = shown.length
        ? `${count(first + 1)} to ${count(first + shown.length)} of ${count(order.length)} ${data.made}${order.length === 1 ? "" : "s"}`
        : "no prompt holds these words";
      for (const pager of pagers) {
        part(pager, "place").textContent = `page ${count(page + 1)} of ${count(pages)}`;
        for (const [name, target] of [["first", 0], ["back", page - 1], ["next", page + 1], ["last", pages - 1]]) {
          const button = part(pager, name);
          button.disabled = target === page || target < 0 || target >= pages;
          button.onclick = () => { page = target; show(); section.scrollIntoView(); };
        }
        pager.hidden = pages === 1;
      }
    }

    sort.addEventListener("change", () => { falling = sort.value !== "rank"; arrange(); });
    turn.addEventListener("click", () => { falling = !falling; arrange(); });
    search.addEventListener("input", arrange);
    arrange();
    part(section, "controls").hidden = false;
  }

  function compare(card) {
    const rows = [...document.querySelectorAll("[data-grid]")];
    const prompt = part(card, "prompt"), stage = part(card, "stage"), at = part(card, "at");
    const sides = ["left", "right"].map((name) => ({
      model: part(card, name), image: part(card, `${name}-image`), label: part(card, `${name}-label`),
    }));

    function show() {
      const row = rows[prompt.value];
      for (const { model, image, label } of sides) {
        const small = row.querySelector(`img[data-model="${CSS.escape(model.value)}"]`);
        const caption = row.querySelector(`[data-label="${CSS.escape(model.value)}"]`);
        label.textContent = caption.textContent + (small ? "" : " (not made)");
        image.hidden = !small;
        if (!small) continue;
        image.alt = small.alt;
        image.className = small.className;
        // The small one is within the page: it stands in where the full one is not beside it.
        image.onerror = () => { image.onerror = null; image.src = small.src; };
        image.src = small.parentNode.getAttribute("href") || small.src;
      }
    }

    const slide = () => stage.style.setProperty("--at", `${at.value}%`);
    at.addEventListener("input", slide);
    for (const choice of [prompt, sides[0].model, sides[1].model]) choice.addEventListener("change", show);
    for (const row of rows) {
      const button = part(row, "compare");
      button.hidden = false;
      button.addEventListener("click", () => {
        prompt.value = row.dataset.grid;
        show();
        card.scrollIntoView({ block: "center" });
        at.focus({ preventScroll: true });
      });
    }
    slide();
    show();
    card.hidden = false;
  }

  // The section that is being read is marked in the navigation.
  function contents(nav) {
    const links = [...nav.querySelectorAll("a")], list = nav.querySelector("ol");
    const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
    let waiting = false, now = -1;
    function mark() {
      waiting = false;
      const end = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
      const passed = sections.filter((own) => own.getBoundingClientRect().top < innerHeight / 3).length;
      const place = end ? sections.length - 1 : passed - 1;
      if (place === now) return;
      links.forEach((link, i) => (i === place ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
      now = place;
      if (place >= 0) list.scrollLeft = links[place].offsetLeft - list.clientWidth / 3;
    }
    addEventListener("scroll", () => {
      if (!waiting) requestAnimationFrame(mark);
      waiting = true;
    }, { passive: true });
    mark();
  }

  function copying(button) {
    const text = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      let copied = true;
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {
        getSelection().selectAllChildren(text);
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Selected: press Ctrl+C";
    });
  }

  // A link to photographs of a reason opens their list, which may be folded.
  function unfold() {
    const target = location.hash.startsWith("#dropped-") && document.getElementById(location.hash.slice(1));
    if (target) target.open = true;
  }

  const pairs = document.getElementById("pairs"), card = document.getElementById("compare");
  if (document.getElementById("pairs-data")) gallery(pairs);
  if (card) compare(card);
  contents(document.querySelector('nav[aria-label="Contents"]'));
  document.querySelectorAll("button[data-copy]").forEach(copying);
  addEventListener("hashchange", unfold);
  unfold();
})();
