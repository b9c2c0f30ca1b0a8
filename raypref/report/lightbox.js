"use strict";
// Every picture in a link marked `data-zoom` opens large in a dialog. Left and right go through the
// pictures of its group that are to be seen; Esc closes, and the focus returns to the link.

(() => {
  const dialog = document.createElement("dialog");
  dialog.className = "lightbox";
  dialog.setAttribute("aria-label", "Picture, enlarged");
  const make = (tag, className) => dialog.appendChild(Object.assign(document.createElement(tag), { className }));
  const frame = make("div", "frame"), image = frame.appendChild(document.createElement("img"));
  const words = make("p", "words"), place = make("p", "place small");
  place.setAttribute("role", "status");
  const button = (className, label, text, act) => {
    const node = make("button", className);
    node.type = "button";
    node.textContent = text;
    node.setAttribute("aria-label", label);
    node.addEventListener("click", act);
    return node;
  };
  let links = [], at = 0;

  const back = button("back", "Picture before", "‹", () => go(-1));
  const next = button("next", "Next picture", "›", () => go(1));
  button("close", "Close", "×", () => dialog.close());

  function show() {
    const link = links[at], small = link.querySelector("img");
    image.className = small.classList.contains("pixelated") ? "pixelated" : "smooth";
    // A strip is wide: it takes its own shape, so do all others.
    image.style.setProperty("--shape", small.naturalWidth / small.naturalHeight || 1);
    // The small one is there already, and stands in where the full one is not beside the page.
    image.onerror = () => { image.onerror = null; image.src = small.src; };
    const full = link.getAttribute("href");
    image.src = full && full !== "#" ? full : small.src;  // "#": there is only the small one
    image.alt = words.textContent = small.alt;
    place.textContent = `${at + 1} of ${links.length}`;
    back.disabled = at === 0;
    next.disabled = at === links.length - 1;
  }

  function go(step) {
    const target = at + step;
    if (target < 0 || target >= links.length) return;
    at = target;
    show();
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-zoom]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const group = link.closest("[data-zoom-group]") || document.body;
    links = [...group.querySelectorAll("a[data-zoom]")].filter((own) => own.checkVisibility());
    at = links.indexOf(link);
    show();
    document.body.append(dialog);
    dialog.showModal();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    go(step);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (links[at] && links[at].isConnected) links[at].focus();
  });
})();
