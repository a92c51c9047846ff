// The live view of one run. Python sends words (present.py); this lays them out and sends back
// "ready" and "cancel". Guest text only ever goes into textContent.

const make = (tag, cls, text) => {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text != null) node.textContent = text;
  return node;
};
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const show = (node, yes) => { node.style.display = yes ? "" : "none"; };

function meter() {
  const root = make("span", "vbx-meter"), label = make("span", "vbx-label");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.setAttribute("viewBox", "0 0 60 14");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.append(line);
  root.append(svg, label);
  show(root, false);
  return { root, set(points, text, title) { show(root, text); root.title = title; line.setAttribute("points", points); put(label, text); } };
}

function clock(seconds) {
  if (seconds < 60) return seconds.toFixed(1) + " s";
  const s = Math.round(seconds), m = Math.floor(s / 60), two = (n) => String(n).padStart(2, "0");
  return m < 60 ? `${m} min ${two(s % 60)} s` : `${Math.floor(m / 60)} h ${two(m % 60)} min`;
}

function entryNode(entry) {
  if (entry.kind === "text") return make("div", "vbx-text");
  if (entry.kind === "log") return make("pre", "vbx-stderr");
  if (entry.kind !== "tool") return make("div", entry.kind === "warning" ? "vbx-note vbx-warning" : "vbx-note");
  const node = make("details", "vbx-tool"), summary = make("summary");
  summary.append(make("b"), make("code", "vbx-arg"), make("span", "vbx-took"));
  node.append(summary, make("pre", "vbx-args"), make("pre", "vbx-result"));
  return node;
}

function fillEntry(node, entry) {
  if (entry.append != null) { node.append(entry.append); return; }
  if (entry.kind !== "tool") { put(node, entry.text); return; }
  const [name, arg, took] = node.firstChild.children;
  node.dataset.status = entry.status;
  put(name, entry.name);
  put(arg, entry.summary);
  put(took, entry.status === "open" ? "running" : (entry.status === "error" ? "error · " : "") + entry.took);
  put(node.children[1], entry.arguments);
  put(node.children[2], entry.text);
  show(node.children[2], entry.text);
}

function blockNode(block) {
  if (block.kind === "code") return make("pre", "", block.text);
  if (block.kind === "prose") {
    const prose = make("div", "vbx-prose"), tags = { text: "span", bold: "b", code: "code" };
    prose.append(...block.spans.map(([kind, text]) => make(tags[kind], "", text)));
    return prose;
  }
  const table = make("table");
  block.rows.forEach((cells, i) => {
    const row = make("tr");
    row.append(...cells.map((cell, column) => {
      const node = make(i ? "td" : "th", "", cell);
      node.style.textAlign = block.align[column];
      return node;
    }));
    table.append(row);
  });
  return table;
}

// One foldable group for each kind of doing; what the user opened or closed stays so.
function doingsView() {
  const root = make("div"), groups = new Map();
  return {
    root,
    update(doings) {
      for (const { kind, summary, lines } of doings) {
        let node = groups.get(kind);
        if (!node) {
          groups.set(kind, node = make("details", "vbx-more vbx-doing"));
          node.dataset.kind = kind;
          node.open = kind === "denied";
          node.append(make("summary"));
          root.append(node);
        }
        put(node.firstChild, summary);
        node.replaceChildren(node.firstChild, ...lines.map((line) => make("div", "vbx-line", line)));
      }
    },
  };
}

function stageView() {
  const root = make("section", "vbx-stage"), head = make("div", "vbx-head"), log = make("div", "vbx-log vbx-live");
  const name = make("b"), state = make("span", "vbx-state"), badges = make("span"), facts = make("span", "vbx-facts");
  const cpu = meter(), memory = meter(), right = make("span", "vbx-right");
  const time = make("span", "vbx-time"), trouble = make("div", "vbx-trouble"), answer = make("div", "vbx-answer");
  const gap = make("div", "vbx-gap"), nodes = new Map();
  const more = make("details", "vbx-more"), doings = doingsView();
  more.append(make("summary", "", "transcript and answer"));
  badges.style.cssText = "display:inline-flex;gap:6px;flex-wrap:wrap";
  head.append(make("span", "vbx-dot"), name, state, badges, facts, right);
  right.append(cpu.root, memory.root, time);
  root.append(head, log, answer, doings.root, trouble);
  show(answer, false);
  let stick = true;
  log.addEventListener("scroll", () => { stick = log.scrollHeight - log.scrollTop - log.clientHeight < 24; });
  return {
    root, time,
    update(stage) {
      root.dataset.vbx = stage.state;
      put(name, stage.name);
      put(state, stage.state);
      badges.replaceChildren(...stage.badges.map((b) => {
        const badge = make("span", "vbx-badge", b.text);
        badge.dataset.kind = b.kind;
        badge.title = b.title;
        return badge;
      }));
      put(facts, stage.facts.join(" · "));
      cpu.set(stage.cpu, stage.cpu_label, "Guest CPU, busy share of all vCPUs");
      memory.set(stage.memory, stage.memory_label, stage.memory_title);
      for (const entry of stage.entries) {
        let node = nodes.get(entry.key);
        if (!node) nodes.set(entry.key, node = entryNode(entry)), log.append(node);
        fillEntry(node, entry);
      }
      const [from, to] = stage.gap;
      if (to > from) {
        for (const [key, node] of nodes) if (key >= from && key < to) node.remove(), nodes.delete(key);
        put(gap, `… ${to - from} entries not shown …`);
        log.insertBefore(gap, nodes.get(to) ?? null);
      }
      if (stage.said != null) nodes.get(stage.said)?.remove();
      show(log, nodes.size);
      put(trouble, stage.trouble ?? "");
      show(trouble, stage.trouble);
      if (stage.answer !== undefined) {
        answer.replaceChildren(...(stage.answer ?? []).map(blockNode));
        show(answer, stage.answer);
      }
      if (stage.doings !== undefined) doings.update(stage.doings);
      if (stage.folded && !more.parentNode) {
        // The run goes on: a step on the way makes room for the next one.
        more.append(log, answer);
        root.insertBefore(more, doings.root);
      }
      if (stick) log.scrollTop = log.scrollHeight;
    },
  };
}

export default {
  render({ model, el }) {
    const abort = new AbortController();
    const root = make("div", "vbx"), bar = make("div", "vbx-bar"), notes = make("div", "vbx-note");
    const id = make("span", "vbx-id"), state = make("span", "vbx-state"), facts = make("span", "vbx-facts");
    const time = make("span", "vbx-time"), cancel = make("button", "", "Cancel"), right = make("span", "vbx-right"), trouble = make("div", "vbx-trouble");
    cancel.type = "button";
    bar.append(make("span", "vbx-dot"), make("b", "", "run"), id, state, facts, right);
    right.append(time, cancel);
    root.append(bar, notes, trouble);
    el.replaceChildren(root);
    let stages = new Map(), view = null, skew = 0;

    const whole = (next) => { for (const s of stages.values()) s.root.remove(); stages = new Map(); apply(next); };
    const apply = (next) => {
      view = next;
      skew = Date.now() / 1000 - next.now;
      root.dataset.vbx = next.state;
      put(id, next.run);
      put(state, next.state);
      put(facts, next.facts.join(" · "));
      put(notes, next.notices.join("\n"));
      show(notes, next.notices.length);
      put(trouble, next.trouble ?? "");
      show(trouble, next.trouble);
      show(cancel, !next.over);
      for (const stage of next.stages) {
        let shown = stages.get(stage.name);
        if (!shown) stages.set(stage.name, shown = stageView()), root.append(shown.root);
        shown.update(stage);
        shown.data = { ...shown.data, ...stage };
      }
      tick();
    };
    const tick = () => {
      const now = Date.now() / 1000 - skew;
      put(time, view.over ? view.elapsed : clock(Math.max(0, now - view.started)));
      for (const { time, data } of stages.values())
        put(time, data.over || !data.started ? data.elapsed ?? "" : clock(Math.max(0, now - data.started)));
    };

    // Patches apply only to the revision they were made from; anything else asks for the whole again.
    let rev = -1;
    const onMessage = (message) => {
      if (message.kind === "whole") { rev = message.rev; whole(message.view); }
      else if (message.kind === "patch" && message.rev > rev) {
        if (message.base === rev) { rev = message.rev; apply(message.view); }
        else model.send({ kind: "ready" });
      }
    };
    model.on("msg:custom", onMessage);
    abort.signal.addEventListener("abort", () => model.off("msg:custom", onMessage));
    cancel.addEventListener("click", () => {
      cancel.disabled = true;
      put(cancel, "Cancelling…");
      model.send({ kind: "cancel" });
    }, { signal: abort.signal });
    const timer = setInterval(() => view && !view.over && tick(), 200);
    abort.signal.addEventListener("abort", () => clearInterval(timer));

    whole(model.get("view"));
    model.send({ kind: "ready" });
    return () => abort.abort();
  },
};
