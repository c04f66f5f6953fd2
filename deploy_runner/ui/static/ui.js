"use strict";

// Follow a run: rows change as its stages do; when it has ended the page is loaded again, with its record.
const live = document.getElementById("live");
const rows = new Map([...document.querySelectorAll("[data-stage]")].map((row) => [row.dataset.stage, row]));

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

function part(row, name) {
  return row.querySelector(`[data-part="${name}"]`);
}

function show(stage) {
  const row = rows.get(stage.id);
  if (!row) return;
  const state = part(row, "state").firstElementChild;
  state.textContent = stage.state;
  state.className = `state ${stage.state.replaceAll(" ", "-")}`;
  const time = part(row, "time");
  if (stage.since) time.dataset.since = stage.since;
  else delete time.dataset.since;
  time.textContent = stage.seconds ? duration(stage.seconds) : "";
  part(row, "log").hidden = ["hit", "skipped", "waiting"].includes(stage.state);
  const said = part(row, "said");
  said.textContent = stage.said;
  said.className = stage.state === "failed" ? "failed" : "";
}

function summary() {
  const states = [...rows.values()].map((row) => part(row, "state").textContent);
  const done = states.filter((state) => !["waiting", "running"].includes(state)).length;
  const running = states.filter((state) => state === "running").length;
  return `${done} of ${states.length} stages have ended, ${running} running`;
}

// Listen while the tab is seen: a browser has six connections to a server, for all tabs together.
function listen(place, handlers, lost) {
  let source = null;
  function open() {
    source = new EventSource(place());
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handle(JSON.parse(event.data), close));
    }
    source.onerror = () => {
      source.close();
      source = null;
      lost();
      setTimeout(look, 3000);
    };
  }
  function close() {
    source?.close();
    source = undefined;
  }
  function look() {
    if (source === undefined) return;
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (source === null) {
      open();
    }
  }
  document.addEventListener("visibilitychange", look);
  look();
}

function lost() {
  if (live) live.textContent = "The connection is lost; it is tried again. Does `deploy-runner ui` still run?";
}

if (live && live.dataset.events) {
  listen(
    () => live.dataset.events,
    {
      stages: (stages) => {
        stages.forEach(show);
        live.textContent = summary();
        document.dispatchEvent(new CustomEvent("stages"));
      },
      end: () => location.reload(),
    },
    lost,
  );
  setInterval(() => {
    for (const time of document.querySelectorAll("[data-since]")) {
      time.textContent = duration(Math.max(0, Date.now() / 1000 - Number(time.dataset.since)));
    }
  }, 500);
}

// Draw the graph again when stages have changed, at most every two seconds.
const graph = document.getElementById("graph");
let drawing = null;

if (graph && graph.dataset.graph) {
  document.addEventListener("stages", () => {
    drawing ??= setTimeout(async () => {
      drawing = null;
      const answer = await fetch(graph.dataset.graph);
      if (!answer.ok) return;
      const focused = [...graph.querySelectorAll("a")].indexOf(document.activeElement);
      graph.innerHTML = await answer.text();
      graph.querySelectorAll("a")[focused]?.focus({ preventScroll: true });
    }, 2000);
  });
}

// A list is loaded again when a run has begun or ended, unless somebody is at work in it.
const changed = document.getElementById("changed");

if (changed) {
  changed.querySelector("a").href = location.href;
  const seen = () => {
    const focused = document.activeElement;
    if (scrollY === 0 && (!focused || focused === document.body)) location.reload();
    else changed.hidden = false;
  };
  listen(() => `${changed.dataset.watch}?seen=${changed.dataset.seen}`, { changed: seen }, lost);
}

// Follow a log: its last part stays in view as long as the reader hasn't scrolled up.
const log = document.getElementById("log");
const KEPT = 400000;

if (log) {
  log.scrollTop = log.scrollHeight;
  if (log.dataset.events) {
    let place = Number(log.dataset.place);
    const add = (part) => {
      place = part.place;
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      const gap = part.left_out ? `\n[${part.left_out} bytes are left out]\n` : "";
      log.textContent = (log.textContent + gap + part.text).slice(-KEPT);
      document.getElementById("nothing")?.remove();
      if (below) log.scrollTop = log.scrollHeight;
    };
    const end = (_, close) => {
      close();
      live.textContent = "The run has ended.";
    };
    listen(() => `${log.dataset.events}&place=${place}`, { text: add, end }, lost);
  }
}

// Filter the rows of a table.
for (const input of document.querySelectorAll("[data-filters]")) {
  const body = document.getElementById(input.dataset.filters).tBodies[0];
  if (body.rows.length < 12) continue;
  input.parentElement.hidden = false;
  input.addEventListener("input", () => {
    const sought = input.value.toLowerCase();
    for (const row of body.rows) {
      const text = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase();
      row.hidden = !text.includes(sought);
    }
  });
}

// Say that a question is being answered, and don't ask it twice.
for (const button of document.querySelectorAll("[data-busy]")) {
  button.form.addEventListener("submit", () => {
    button.textContent = button.dataset.busy;
    setTimeout(() => { button.disabled = true; }, 0);
  });
}
document.getElementById("answer")?.focus();
