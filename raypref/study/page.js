"use strict";
// Asks about one pair after another. A vote is kept before the next pair shows.
(() => {
  const byId = (id) => document.getElementById(id);
  const embedded = byId("data").textContent.trim();
  const ties = document.body.dataset.ties === "yes";
  const AHEAD = 3; // pairs whose images are loaded before they are asked about
  const RETRY = [500, 1000, 2000, 4000, 8000]; // milliseconds
  const LEAST = 150; // milliseconds that a pair is seen: a second click is no vote on the next one

  const store = {
    get: (key) => { try { return localStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, value); return true; } catch { return false; } },
    remove: (key) => { try { localStorage.removeItem(key); } catch { /* nothing is kept */ } },
  };
  const hex = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const pause = (milliseconds) => new Promise((then) => setTimeout(then, milliseconds));

  // Both keep votes and tell what is kept: {tasks, answers: [{task, choice, id}]}.
  function server() {
    async function post(path, told) {
      for (let attempt = 0; ; attempt += 1) {
        try {
          const answer = await fetch(path, {
            method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(told),
          });
          if (answer.status === 404) return { status: 404, error: "This study is no longer served here." };
          if (answer.status !== 429 && answer.status < 500) return { status: answer.status, ...(await answer.json()) };
        } catch { /* no connection; a vote that is sent again is the same vote */ }
        say("Not saved yet: no connection. Trying again …", true);
        await pause(RETRY[Math.min(attempt, RETRY.length - 1)]);
      }
    }
    return {
      key: `raypref-study ${location.pathname}`,
      start: (rater) => post("start", { rater }),
      vote: (vote) => post("vote", vote),
      undo: (rater, id) => post("undo", { rater, id }),
      image: (name) => `images/${name}.webp`,
    };
  }

  function byItself(data) {
    const key = `raypref-study ${data.study}`;
    const kept = (rater) => JSON.parse(store.get(`${key} ${rater}`) || "null") || memory[rater] || [];
    const memory = {};
    const keep = (rater, votes) => {
      memory[rater] = votes;
      if (!store.set(`${key} ${rater}`, JSON.stringify(votes))) say("This browser keeps nothing: save your votes before you close the page.", true);
    };
    const order = (rater) => { // FNV-1a of the code picks one of the orders
      let hash = 0x811c9dc5;
      for (const byte of new TextEncoder().encode(rater)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
      return data.orders[hash % data.orders.length];
    };
    const tasks = (rater) => order(rater).map((place) => {
      const [task, prompt, one, other] = data.tasks[place < 0 ? -place - 1 : place];
      return place < 0 ? { task, prompt, left: other, right: one } : { task, prompt, left: one, right: other };
    });
    return {
      key,
      study: data.study,
      kept,
      start: async (rater) => ({ status: 200, tasks: tasks(rater), answers: kept(rater) }),
      vote: async ({ rater, ...vote }) => {
        const votes = kept(rater);
        if (votes.some((other) => other.task === vote.task)) return { status: 409, answers: votes };
        keep(rater, [...votes, { ...vote, time: new Date().toISOString() }]);
        return { status: 200 };
      },
      undo: async (rater, id) => {
        keep(rater, kept(rater).filter((vote) => vote.id !== id));
        return { status: 200, answers: kept(rater) };
      },
      image: (name) => `data:image/webp;base64,${data.images[name]}`,
    };
  }

  const backend = embedded ? byItself(JSON.parse(embedded)) : server();
  let rater = "", tasks = [], answers = [], current = null, since = 0, busy = true, shown = 0;
  const images = new Map(); // name to {image, ready}

  function say(text, trouble = false) {
    byId("status").textContent = text;
    byId("status").className = trouble ? "trouble" : "";
  }

  function tell(text) { // what the page shows elsewhere, for screen readers
    say(text);
    byId("status").className = "unseen";
  }

  function load(name) {
    if (!images.has(name)) {
      const image = new Image();
      image.src = backend.image(name);
      image.alt = "";
      const decoded = async () => {
        for (let attempt = 0; ; attempt += 1) {
          try { await image.decode(); break; } catch {
            say("An image does not load. Trying again …", true);
            await pause(RETRY[Math.min(attempt, RETRY.length - 1)]);
            image.src = backend.image(name);
          }
        }
        image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 128);
      };
      images.set(name, { image, ready: decoded() });
    }
    return images.get(name);
  }

  function wait(waiting) {
    busy = waiting;
    for (const button of document.querySelectorAll("[data-choice], #undo")) button.setAttribute("aria-disabled", String(waiting));
    byId("compare").setAttribute("aria-busy", String(waiting));
  }

  async function next() {
    const answered = new Set(answers.map((answer) => answer.task));
    const open = tasks.filter((task) => !answered.has(task.task));
    const done = tasks.length - open.length;
    const turn = (shown += 1);
    current = open[0] || null;
    byId("bar").max = Math.max(1, tasks.length);
    byId("bar").value = done;
    byId("count").textContent = current ? `Pair ${done + 1} of ${tasks.length}` : `${done} of ${tasks.length}`;
    byId("begin").hidden = true;
    byId("compare").hidden = !current;
    byId("done").hidden = Boolean(current);
    byId("after").hidden = false;
    byId("undo").hidden = answers.length === 0;
    if (!current) {
      wait(false);
      say("");
      byId("done").focus();
      return;
    }
    wait(true);
    byId("prompt").textContent = current.prompt;
    const sides = [current.left, current.right].map(load);
    for (const task of open.slice(1, 1 + AHEAD)) [task.left, task.right].forEach(load);
    await Promise.all(sides.map((side) => side.ready));
    if (turn !== shown) return;
    document.querySelectorAll(".picture").forEach((button, place) => {
      button.querySelector("img")?.remove();
      button.removeAttribute("data-chosen");
      button.append(sides[place].image);
    });
    tell(`Pair ${done + 1} of ${tasks.length}${current.prompt ? `: ${current.prompt}` : ""}`);
    since = performance.now();
    const keep = new Set(open.slice(0, 1 + AHEAD).flatMap((task) => [task.left, task.right]));
    for (const name of images.keys()) if (!keep.has(name)) images.delete(name);
    await pause(LEAST);
    if (turn === shown) wait(false);
  }

  async function choose(choice) {
    if (busy || !current || (choice === "tie" && !ties)) return;
    const seconds = Math.round(performance.now() - since) / 1000;
    const { task, left, right } = current;
    const vote = { id: hex(), rater, task, left, right, choice, seconds };
    wait(true);
    document.querySelector(`.picture[data-choice="${choice}"]`)?.setAttribute("data-chosen", "");
    const answer = await backend.vote(vote);
    if (answer.status === 200) answers.push({ task, choice, id: vote.id });
    else if (answer.answers) answers = answer.answers; // it was answered in another window
    else {
      say(`Not saved: ${answer.error || answer.status}. Reload the page.`, true);
      return;
    }
    await next();
  }

  async function undo() {
    const last = answers[answers.length - 1];
    if (busy || !last) return;
    wait(true);
    const answer = await backend.undo(rater, last.id);
    answers = answer.answers || (await backend.start(rater)).answers;
    await next();
    if (current) say("The last vote was taken back.");
  }

  async function start(code) {
    const answer = await backend.start(code);
    if (!answer.tasks) {
      say(answer.error || "This code cannot be used.", true);
      return;
    }
    ({ tasks, answers } = answer);
    rater = code;
    store.set(backend.key, code);
    byId("who").hidden = false;
    byId("who").querySelector("b").textContent = code;
    await next();
  }

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  byId("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    start(byId("code").value.trim());
  });
  byId("change").addEventListener("click", () => {
    store.remove(backend.key);
    shown += 1;
    current = null;
    rater = "";
    for (const id of ["compare", "done", "after", "who"]) byId(id).hidden = true;
    byId("begin").hidden = false;
    say("");
    byId("code").value = "";
    byId("code").focus();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-choice]");
    if (button) choose(button.dataset.choice);
  });
  byId("undo").addEventListener("click", undo);
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || !rater) return;
    const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie" }[event.key];
    if (choice && current) {
      event.preventDefault();
      choose(choice);
    } else if (event.key.toLowerCase() === "u") undo();
  });
  // What was answered meanwhile in another window or on another device.
  document.addEventListener("visibilitychange", async () => {
    if (document.hidden || busy || !rater) return;
    const own = rater;
    const answer = await backend.start(own);
    if (!busy && rater === own && answer.answers && answer.answers.length !== answers.length) {
      answers = answer.answers;
      await next();
    }
  });
  byId("save-json")?.addEventListener("click", () => {
    const told = { study: backend.study, rater, votes: backend.kept(rater) };
    save(`votes-${rater}.json`, "application/json", JSON.stringify(told, null, 1));
  });
  byId("save-csv")?.addEventListener("click", () => {
    const names = ["id", "task", "left", "right", "choice", "seconds", "time"];
    const lines = backend.kept(rater).map((vote) => [backend.study, rater, ...names.map((name) => vote[name])].join(","));
    save(`votes-${rater}.csv`, "text/csv", [["study", "rater", ...names].join(","), ...lines, ""].join("\n"));
  });

  const before = store.get(backend.key);
  if (before) start(before);
  else byId("code").focus();
})();
