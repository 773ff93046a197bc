"use strict";
// All texts go in by textContent: nothing that a model or a data set wrote is ever read as HTML.
(() => {
  const cards = document.getElementById("cards");
  if (!cards) return;
  const search = document.getElementById("search"), task = document.getElementById("task");
  const order = document.getElementById("order"), more = document.getElementById("more"), count = document.getElementById("count");
  const PAGE = 10;
  const items = [];
  let loaded = 0, shown = PAGE;

  window.rbaSamples = (chunk) => items.push(...chunk);

  const load = () => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `samples-${loaded}.js`;
    script.onload = () => { loaded += 1; resolve(); };
    script.onerror = () => reject(new Error(script.src));
    document.head.append(script);
  });
  let queue = Promise.resolve();
  const need = (enough) => (queue = queue.then(async () => { while (loaded < CHUNKS && !enough()) await load(); }));

  const make = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };

  function clip(view) {
    const row = make("div", { className: "clip" });
    if (view.audio) {
      const play = make("button", { type: "button", textContent: `▶ ${view.seconds.toFixed(1)} s` });
      play.onclick = () => {
        const audio = make("audio", { controls: true, src: view.audio });
        play.replaceWith(audio);
        audio.play().catch(() => {});
      };
      row.append(play);
    }
    if (view.heard != null) row.append(make("span", { textContent: `heard: “${view.heard}”` }));
    return row;
  }

  function answer(entry) {
    const box = make("div", { className: entry.target ? "answer target" : "answer" });
    box.style.setProperty("--c", entry.colour);
    box.append(make("b", {}, entry.name, make("span", { textContent: entry.note })), make("p", { textContent: entry.text || "(nothing)" }));
    return box;
  }

  function card(item) {
    const box = make("article", { className: "card" });
    box.append(make("h3", {}, item.instruction, make("small", { textContent: `${item.task} · ${item.id}` })));
    const body = make("div"), tabs = make("div", { className: "tabs" });
    const show = (place) => {
      const view = item.views[place];
      [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === place)));
      body.replaceChildren(clip(view), make("div", { className: "answers" }, ...item.targets.map(answer), ...view.answers.map(answer)));
    };
    item.views.forEach((view, place) => {
      const tab = make("button", { type: "button", textContent: view.voice });
      tab.onclick = () => show(place);
      tabs.append(tab);
    });
    if (item.views.length > 1) box.append(tabs);
    box.append(body);
    show(0);
    return box;
  }

  const text = (item) => [item.instruction, item.id, ...item.targets.map((t) => t.text), ...item.views.flatMap((v) => [v.voice, v.heard || "", ...v.answers.map((a) => a.text)])].join("\n").toLowerCase();

  function wanted() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = items.filter((item) => (!task.value || item.task === task.value) && words.every((word) => (item.text ??= text(item)).includes(word)));
    if (order.value) {
      const down = order.value.startsWith("-"), arm = down ? order.value.slice(1) : order.value;
      const gain = (item) => item.gains[arm] ?? (down ? Infinity : -Infinity);
      kept.sort((a, b) => (down ? gain(a) - gain(b) : gain(b) - gain(a)));
    }
    return kept;
  }

  async function render() {
    const narrow = Boolean(search.value || task.value || order.value);
    try { await need(() => !narrow && items.length >= shown); }
    catch (error) { count.textContent = `cannot read ${error.message}`; }
    const kept = wanted();
    cards.replaceChildren(...kept.slice(0, shown).map(card));
    more.hidden = kept.length <= shown && (narrow || loaded >= CHUNKS);
    count.textContent = narrow ? `${kept.length} found` : "";
  }

  let timer;
  search.oninput = () => { clearTimeout(timer); timer = setTimeout(() => { shown = PAGE; render(); }, 150); };
  for (const select of [task, order]) select.onchange = () => { shown = PAGE; render(); };
  more.onclick = () => { shown += PAGE; render(); };
  render();
})();
