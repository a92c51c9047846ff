// The live view of one run. Python sends words and harmless HTML (present.py); this lays them out and sends back
// "ready", what a button asks for, and which page of the transcript is wanted. What a guest said comes as text, for
// textContent, or as HTML that the kernel has made of it (markdown.py): innerHTML is set from there alone.

const make = (tag, cls, text) => {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text != null) node.textContent = text;
  return node;
};
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const html = (node, made) => { if (node.made !== made) node.innerHTML = node.made = made; };
const show = (node, yes) => { node.style.display = yes ? "" : "none"; };

function meter() {
  const root = make("span", "vbx-meter"), label = make("span", "vbx-label");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.setAttribute("viewBox", "0 0 60 14");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.append(line);
  root.append(svg, label);
  show(root, false);
  return {
    root,
    set(points, text, title) {
      show(root, text);
      root.title = title;
      svg.setAttribute("aria-label", title);
      line.setAttribute("points", points);
      put(label, text);
    },
  };
}

function clock(seconds) {
  if (seconds < 60) return seconds.toFixed(1) + " s";
  const s = Math.round(seconds), m = Math.floor(s / 60), two = (n) => String(n).padStart(2, "0");
  return m < 60 ? `${m} min ${two(s % 60)} s` : `${Math.floor(m / 60)} h ${two(m % 60)} min`;
}

// A place where something is left out: how much, and a button that reads it from the store, a page at a time. What
// was read stands before it.
function missing(ask, stage, insert) {
  const root = make("div", "vbx-gap"), label = make("span"), load = make("button", "vbx-load", "more");
  let place = null, next = null, read = 0;
  const left = () => place.count - read;
  const tell = (said) => {
    const n = left().toLocaleString("en-US");
    put(label, said ?? `… ${n} ${place.what} not shown … `);
    load.setAttribute("aria-label", `Show more of the ${n} ${place.what}`);
    show(root, left() > 0);
  };
  load.type = "button";
  load.addEventListener("click", async () => {
    load.disabled = true;
    const page = await ask({ stage, ...place.at, ...next, most: Math.max(1, left()) });
    load.disabled = false;
    if (page.error) return tell(page.error + " ");
    next = page.next;
    read += page.count;
    insert(page, root);
    tell();
    if (left() > 0) load.focus();
  });
  root.append(label, load);
  return { root, set(now) { place = now; tell(); } };
}

function blockNodes(blocks) {
  return blocks.map((made) => { const node = make("div"); html(node, made); return node; });
}

const TAGS = { text: "vbx-text vbx-md", log: "vbx-stderr", notice: "vbx-note", warning: "vbx-note vbx-warning" };

// An entry of the transcript: its head, what is missing, its tail. Tools fold, and keep what the user folded.
function entryView(entry, ask, stage) {
  const tool = entry.kind === "tool", pre = tool || entry.kind === "log";
  const body = make(pre ? "pre" : "div", tool ? "vbx-result" : TAGS[entry.kind]);
  const head = make(entry.kind === "text" ? "div" : "span"), tail = make(entry.kind === "text" ? "div" : "span");
  let root = body, name, arg, took, args, cut = null;
  body.append(head, tail);
  if (tool) {
    root = make("details", "vbx-tool");
    const summary = make("summary");
    summary.append(name = make("b"), arg = make("code", "vbx-arg"), took = make("span", "vbx-took"));
    root.append(summary, args = make("pre", "vbx-args"), body);
  }
  const insert = (page, before) => {
    if (page.blocks) before.before(...blockNodes(page.blocks));
    else before.before(make("span", "", page.text));
  };
  return {
    root,
    update(entry) {
      if (entry.append != null) { head.append(entry.append); return; }
      if (entry.kind === "text") {
        const from = entry.from ?? 0;
        while (head.childNodes.length > from) head.lastChild.remove();
        head.append(...blockNodes(entry.blocks));
        html(tail, entry.tail_blocks.join("\n"));
      } else {
        if (entry.text != null) put(head, entry.text);
        put(tail, entry.tail);
      }
      if (entry.cut) {
        if (!cut) body.insertBefore((cut = missing(ask, stage, insert)).root, tail);
        cut.set(entry.cut);
      }
      if (!tool) return;
      root.dataset.status = entry.status;
      put(name, entry.name);
      put(arg, entry.summary);
      put(took, entry.status === "open" ? "running" : (entry.status === "error" ? "error · " : "") + entry.took);
      put(args, entry.arguments);
      show(body, entry.text);
    },
  };
}

// Foldable groups, one for each kind; what the user opened or closed stays so.
function group(kind, open = false) {
  const root = make("details", "vbx-more vbx-doing"), summary = make("summary"), body = make("div");
  root.dataset.kind = kind;
  root.open = open;
  root.append(summary, body);
  return { root, body, title: (text) => put(summary, text) };
}

function doingsView() {
  const root = make("div"), groups = new Map();
  return {
    root,
    update(doings) {
      for (const { kind, summary, lines } of doings) {
        if (!groups.has(kind)) {
          groups.set(kind, group(kind, kind === "denied"));
          root.append(groups.get(kind).root);
        }
        groups.get(kind).title(summary);
        groups.get(kind).body.replaceChildren(...lines.map((line) => make("div", "vbx-line", line)));
      }
    },
  };
}

function stageView(stageName, ask) {
  const root = make("section", "vbx-stage"), head = make("div", "vbx-head"), log = make("div", "vbx-log vbx-live");
  const glyph = make("span", "vbx-glyph"), name = make("b", "", stageName), state = make("span", "vbx-state");
  const badges = make("span"), facts = make("span", "vbx-facts"), meters = make("span", "vbx-meters");
  const cpu = meter(), memory = meter(), right = make("span", "vbx-right"), queue = make("div", "vbx-queue");
  const time = make("span", "vbx-time"), trouble = make("div", "vbx-trouble"), answer = make("div", "vbx-answer vbx-md");
  const entries = new Map(), more = make("details", "vbx-more"), doings = doingsView(), vitals = group("vitals");
  let gap = null, stick = true;
  root.setAttribute("aria-label", `Stage ${stageName}`);
  root.tabIndex = -1;
  glyph.ariaHidden = "true";
  log.tabIndex = 0;
  log.setAttribute("role", "log");
  log.setAttribute("aria-live", "off"); // changes of state are announced, not each word
  log.setAttribute("aria-label", `Transcript of ${stageName}`);
  vitals.root.classList.add("vbx-vitals");
  more.append(make("summary", "", "transcript and answer"));
  badges.style.cssText = "display:inline-flex;gap:6px;flex-wrap:wrap";
  head.append(glyph, name, state, badges, facts, meters, right);
  right.append(cpu.root, memory.root, time);
  root.append(head, queue, log, answer, doings.root, vitals.root, trouble);
  for (const node of [log, answer, vitals.root]) show(node, false);
  log.addEventListener("scroll", () => { stick = log.scrollHeight - log.scrollTop - log.clientHeight < 24; });
  const insert = (page, before) => {
    for (const entry of page.entries) {
      const view = entryView(entry, ask, stageName);
      view.update(entry);
      before.before(view.root);
    }
  };
  return {
    root, time,
    update(stage) {
      root.dataset.vbx = stage.state;
      put(glyph, stage.glyph);
      put(state, stage.state);
      badges.replaceChildren(...stage.badges.map((b) => {
        const badge = make("span", "vbx-badge", b.text);
        badge.dataset.kind = b.kind;
        badge.title = b.title;
        return badge;
      }));
      put(facts, stage.facts.join(" · "));
      html(meters, stage.meters);
      put(queue, stage.queue ?? "");
      show(queue, stage.queue);
      cpu.set(stage.cpu, stage.cpu_label, "Guest CPU, busy share of all vCPUs");
      memory.set(stage.memory, stage.memory_label, stage.memory_title);
      if (stage.vitals !== undefined) {
        html(vitals.body, stage.vitals);
        vitals.title(`telemetry: ${stage.telemetry}`);
        show(vitals.root, stage.vitals);
      }
      for (const entry of stage.entries) {
        if (!entries.has(entry.key)) {
          entries.set(entry.key, entryView(entry, ask, stageName));
          log.append(entries.get(entry.key).root);
        }
        entries.get(entry.key).update(entry);
      }
      if (stage.gap) {
        for (const [key, { root }] of entries) {
          if (key >= stage.gap.from && key < stage.gap.to) root.remove(), entries.delete(key);
        }
        gap ??= missing(ask, stageName, insert);
        const after = entries.get(stage.gap.to)?.root ?? null;
        if (gap.root.nextSibling !== after || !gap.root.parentNode) log.insertBefore(gap.root, after);
        gap.set(stage.gap);
      }
      if (stage.said != null) entries.get(stage.said)?.root.remove();
      show(log, entries.size);
      put(trouble, stage.trouble ?? "");
      show(trouble, stage.trouble);
      if (stage.answer !== undefined) {
        answer.replaceChildren(...blockNodes(stage.answer ?? []));
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
    select(yes, open) {
      root.toggleAttribute("data-selected", yes);
      if (yes && open && more.parentNode) more.open = true;
      if (yes) root.scrollIntoView({ block: "nearest" });
    },
  };
}

// The drawing of the pipeline. One node is reached by Tab, the others by arrow keys; the one with the focus is selected.
function graphView(select, signal) {
  const root = make("div");
  let nodes = new Map(), chosen = null;
  const place = (node) => [parseFloat(node.style.left), parseFloat(node.style.top)];
  const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const beside = (from, [dx, dy]) => {
    const [x, y] = place(from);
    const far = (node) => {
      const [nx, ny] = place(node), along = (nx - x) * dx + (ny - y) * dy, off = dx ? Math.abs(ny - y) : Math.abs(nx - x);
      return along <= 0 ? Infinity : dx ? along * 1000 + off : off * 1000 + along;
    };
    return [...nodes.values()].filter((n) => far(n) < Infinity && (dx || far(n) < 1000 * 1000)).sort((a, b) => far(a) - far(b))[0];
  };
  const choose = (node) => {
    if (chosen === node) return;
    chosen?.setAttribute("aria-pressed", "false");
    for (const other of nodes.values()) other.tabIndex = -1;
    chosen = node;
    (node ?? nodes.values().next().value).tabIndex = 0;
    node?.setAttribute("aria-pressed", "true");
    select(node?.dataset.stage ?? null);
  };
  root.addEventListener("focusin", (event) => { const node = event.target.closest(".vbx-node"); if (node) choose(node); }, { signal });
  root.addEventListener("click", (event) => {
    const node = event.target.closest(".vbx-node");
    node?.focus({ preventScroll: true }); // not every browser does so itself
    if (node) select(node.dataset.stage, true);
  }, { signal });
  root.addEventListener("keydown", (event) => {
    const node = event.target.closest(".vbx-node");
    if (!node) return;
    if (event.key === "Escape") choose(null);
    else if (steps[event.key]) beside(node, steps[event.key])?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal });
  return {
    root,
    draw(made) {
      html(root, made ?? "");
      nodes = new Map([...root.querySelectorAll(".vbx-node")].map((node) => [node.dataset.stage, node]));
      chosen = null;
      const first = nodes.values().next().value;
      if (first) first.tabIndex = 0;
    },
    set(name, state, glyph, note) {
      const node = nodes.get(name);
      if (!node) return;
      if (!node.shape) {
        node.shape = make("span", "vbx-glyph");
        node.shape.ariaHidden = "true";
        node.prepend(node.shape);
      }
      node.dataset.vbx = state;
      put(node.shape, glyph);
      put(node.querySelector(".vbx-below"), note);
    },
  };
}

export default {
  render({ model, el }) {
    const abort = new AbortController(), { signal } = abort;
    const root = make("div", "vbx"), bar = make("div", "vbx-bar"), notes = make("div", "vbx-note");
    const glyph = make("span", "vbx-glyph"), id = make("b", "vbx-id"), state = make("span", "vbx-state");
    const facts = make("span", "vbx-facts"), meters = make("span", "vbx-meters"), buttons = make("span", "vbx-right");
    const time = make("span", "vbx-time"), right = make("span", "vbx-right"), trouble = make("div", "vbx-trouble");
    const list = make("div", "vbx-stages"), spoken = make("div", "vbx-said");
    glyph.ariaHidden = "true";
    spoken.setAttribute("role", "status");
    spoken.setAttribute("aria-live", "polite");
    notes.style.whiteSpace = "pre-wrap";
    let stages = new Map(), view = null, skew = 0, tickets = 0;
    const waiting = new Map(), said = new Map();
    const ask = (request) => new Promise((answered) => {
      waiting.set(++tickets, answered);
      model.send({ ...request, kind: "more", ticket: tickets });
    });
    const graph = graphView((name, open) => {
      for (const [other, stage] of stages) stage.select(other === name, open);
    }, signal);
    bar.append(glyph, make("span", "vbx-kind", "run"), id, state, facts, meters, right);
    right.append(time, buttons);
    root.append(bar, notes, trouble, graph.root, list, spoken);
    el.replaceChildren(root);
    // Keys are the view's here and not JupyterLab's, which looks for this attribute: Enter presses a button. With Ctrl
    // and the like they stay JupyterLab's. It listens at the document, so the window comes before it. It begins with
    // what has the focus, and some keys of Notebook 7 are for that, whatever it is.
    window.addEventListener("keydown", (event) => {
      if (root.contains(event.target))
        event.target.toggleAttribute("data-lm-suppress-shortcuts", !(event.ctrlKey || event.metaKey || event.altKey));
    }, { capture: true, signal });

    const whole = (next) => {
      for (const s of stages.values()) s.root.remove();
      stages = new Map();
      apply(next);
    };
    // What changed its state is told to screen readers, and nothing on the first look.
    const speak = (name, now) => {
      const news = said.has(name) && said.get(name) !== now;
      said.set(name, now);
      return news ? [`${name} ${now}`] : [];
    };
    const act = (action) => {
      const button = make("button", "vbx-act", action.text);
      button.type = "button";
      button.name = action.name;
      button.title = action.title;
      button.addEventListener("click", () => {
        button.disabled = true;
        put(button, `${action.text}…`);
        model.send({ kind: "act", action: action.name });
        setTimeout(() => { button.disabled = false; put(button, action.text); }, 10000);
      });
      return button;
    };
    const apply = (next) => {
      const before = view?.actions.map((a) => a.name).join();
      view = next;
      skew = Date.now() / 1000 - next.now;
      root.dataset.vbx = next.state;
      put(glyph, next.glyph);
      put(id, next.run);
      put(state, next.state);
      put(facts, next.facts.join(" · "));
      html(meters, next.meters);
      put(notes, next.notices.join("\n"));
      show(notes, next.notices.length);
      put(trouble, next.trouble ?? "");
      show(trouble, next.trouble);
      if (next.actions.map((a) => a.name).join() !== before) buttons.replaceChildren(...next.actions.map(act));
      if (next.graph !== undefined) graph.draw(next.graph);
      for (const { name, state, glyph, note } of [...next.stages, ...next.groups]) graph.set(name, state, glyph, note);
      const news = speak("run", next.state);
      for (const stage of next.stages) {
        let shown = stages.get(stage.name);
        if (!shown) stages.set(stage.name, shown = stageView(stage.name, ask)), list.append(shown.root);
        shown.update(stage);
        shown.data = { ...shown.data, ...stage };
        news.push(...speak(stage.name, stage.state));
      }
      list.toggleAttribute("data-many", stages.size > 8);
      if (news.length) put(spoken, news.slice(-4).join(", "));
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
      else if (message.kind === "page") { waiting.get(message.ticket)?.(message.page); waiting.delete(message.ticket); }
      else if (message.kind === "patch" && message.rev > rev) {
        if (message.base === rev) { rev = message.rev; apply(message.view); }
        else model.send({ kind: "ready" });
      }
    };
    model.on("msg:custom", onMessage);
    signal.addEventListener("abort", () => model.off("msg:custom", onMessage));
    const timer = setInterval(() => view && !view.over && tick(), 200);
    signal.addEventListener("abort", () => clearInterval(timer));

    whole(model.get("view"));
    model.send({ kind: "ready" });
    return () => abort.abort();
  },
};
