"use strict";
// All texts go in by textContent: nothing that a model or a data set wrote is ever read as HTML.
(() => {
  const cards = document.getElementById("cards");
  if (!cards) return;
  const [search, more, count] = ["search", "more", "count"].map((id) => document.getElementById(id));
  // Filters stand on the page only where they have a choice.
  const [task, voice, flag, order] = ["task", "voice", "flag", "order"].map((id) => document.getElementById(id) ?? { value: "" });
  const PAGE = 10;
  const items = [...INLINE];
  let loaded = 0, shown = PAGE, asked = 0;

  window.rbaSamples = (chunk) => items.push(...chunk);

  const load = () => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `samples-${loaded}.js`;
    script.onload = () => { loaded += 1; resolve(); };
    script.onerror = () => reject(new Error(script.src));
    document.head.append(script);
  });
  let queue = Promise.resolve();
  const need = (enough) => (queue = queue.then(async () => { while (loaded < CHUNKS && !enough()) await load(); }).catch(fail));
  const fail = (error) => { count.textContent = `cannot read ${error.message}`; };

  const make = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };

  function clip(view) {
    const row = make("div", { className: "clip" });
    if (view.audio) {
      const play = make("button", { type: "button", textContent: `▶ ${view.seconds.toFixed(1)} s` });
      play.setAttribute("aria-label", `Play ${view.voice}, ${view.seconds.toFixed(1)} seconds`);
      play.onclick = () => {
        const audio = make("audio", { controls: true, src: view.audio });
        play.replaceWith(audio);
        audio.focus();
        audio.play().catch(() => {});
      };
      row.append(play);
    }
    if (view.picture) row.append(make("img", { src: view.picture, alt: `Spectrogram of ${view.voice}, 0 to 8 kHz`, className: "picture" }));
    if (view.heard != null) row.append(make("span", { textContent: `heard: “${view.heard}”` }));
    if (view.note) row.append(make("span", { textContent: view.note }));
    return row;
  }

  function answer(entry) {
    const box = make("div", { className: entry.target ? "answer target" : "answer" });
    box.style.setProperty("--c", entry.colour);
    box.append(make("b", {}, entry.name, make("span", { textContent: entry.note })), make("p", { textContent: entry.text || "(nothing)" }));
    return box;
  }

  const answers = (entries) => make("div", { className: "answers" }, ...entries.map(answer));

  function card(item) {
    const box = make("article", { className: "card" });
    box.append(make("h3", {}, item.instruction, make("small", { textContent: `${item.task} · ${item.id}` })));
    const body = make("div"), tabs = make("div", { className: "tabs" });
    tabs.setAttribute("role", "group");
    tabs.setAttribute("aria-label", "Voice");
    const show = (place) => {
      const view = item.views[place];
      [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === place)));
      body.replaceChildren(clip(view), answers([...item.targets, ...view.answers]));
      if (view.aside.length) body.append(make("details", {}, make("summary", { textContent: "answers to another item's clip" }), answers(view.aside)));
    };
    item.views.forEach((view, place) => {
      const tab = make("button", { type: "button", textContent: view.voice });
      tab.onclick = () => show(place);
      tabs.append(tab);
    });
    if (item.views.length > 1) box.append(tabs);
    box.append(body);
    show(Math.max(0, item.views.findIndex((view) => view.voice === voice.value)));
    return box;
  }

  const text = (item) => [item.instruction, item.id, ...item.targets.map((t) => t.text), ...item.views.flatMap((v) => [v.voice, v.heard || "", ...v.answers.map((a) => a.text)])].join("\n").toLowerCase();

  const fits = (item, words) =>
    (!task.value || item.task === task.value) &&
    (!voice.value || item.views.some((view) => view.voice === voice.value)) &&
    (!flag.value || item.flags.includes(flag.value)) &&
    words.every((word) => (item.text ??= text(item)).includes(word));

  function wanted() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = items.filter((item) => fits(item, words));
    if (order.value) {
      const down = order.value.startsWith("-"), arm = down ? order.value.slice(1) : order.value;
      const gain = (item) => item.gains[arm] ?? (down ? Infinity : -Infinity);
      kept.sort((a, b) => (down ? gain(a) - gain(b) : gain(b) - gain(a)));
    }
    return kept;
  }

  // Cards that are there stay (a clip may be playing) unless the choice changed; returns the first new one.
  async function render(keep = 0) {
    const mine = ++asked, narrow = [search, task, voice, flag, order].some((one) => one.value);
    if (narrow && loaded < CHUNKS) count.textContent = "reading all samples …";
    await need(() => !narrow && items.length >= shown);
    if (mine !== asked) return;
    const kept = wanted(), fresh = kept.slice(keep, shown).map(card);
    if (keep) cards.append(...fresh); else cards.replaceChildren(...fresh);
    const total = narrow ? kept.length : COUNT;
    more.hidden = total <= shown;
    if (loaded >= CHUNKS || !narrow) count.textContent = `${Math.min(shown, total)} of ${total} shown`;
    return fresh[0];
  }

  let timer;
  const anew = () => { shown = PAGE; render(); };
  search.oninput = () => { clearTimeout(timer); timer = setTimeout(anew, 150); };
  for (const select of [task, voice, flag, order]) select.onchange = anew;
  more.onclick = async () => {
    const keep = shown;
    shown += PAGE;
    const first = await render(keep);
    if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
  };
  render();
})();
