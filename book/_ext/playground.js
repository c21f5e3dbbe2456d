/* The playground: edits of the twins, run in this browser by twin.js. See _ext/playground.py for the page and for what the
   files hold that are loaded when a reader asks. Without this script, there is a picture. */
"use strict";
(() => {
  const { Twin, Tokenizer, floats } = globalThis.editlibTwin;
  const home = new URL(".", document.currentScript.src);
  const METHODS = { rome: "▲ ROME", "c-rome": "◆ C-ROME", "fc-rome": "● fc-rome" };
  const ARMS = { unedited: "Unedited", ...METHODS };
  const SHOWN = 5, WRITTEN = 10, LONGEST = 100; // next words, words of a continuation, tokens of a prompt

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElementNS(tag in SHAPES ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const SHAPES = { g: 1, line: 1, polyline: 1, text: 1 };

  const number = (value) => value.toLocaleString("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const pause = () => new Promise((done) => { setTimeout(done); });

  /** What a script of this folder says, which is left in `window`. */
  const load = (name, file) => new Promise((done, failed) => {
    const script = element("script", { src: new URL(file, home).href });
    script.onload = () => done(window.editlibPlayground[name]);
    script.onerror = () => failed(new Error(file));
    document.head.append(script);
  });

  class Playground {
    constructor(root, edits, twin) {
      this.root = root;
      this.files = JSON.parse(root.dataset.files);
      this.collapse = Number(root.dataset.collapse);
      this.edits = edits;
      this.tokenizer = new Tokenizer(edits.merges);
      this.twins = { anchored: Promise.resolve(new Twin(twin)) };
      this.texts = edits.texts.map((text) => this.tokenizer.encode(text));
      this.kept = new Map(); // perplexities, and texts as far as the edited layer
      this.turn = 0; // of what the reader wants: what is computed for an older one is dropped
      this.form = root.querySelector("form");
      this.cards = Object.fromEntries(Object.entries(ARMS).map(([name, title]) => [name, this.card(name, title)]));
      this.prepare();
    }

    once(key, make) {
      if (!this.kept.has(key)) this.kept.set(key, make());
      return this.kept.get(key);
    }

    // -- what the reader chooses ----------------------------------------------------------------------

    prepare() {
      const { form } = this, { case: cases, ready, prompt } = form.elements;
      for (const [kind, some] of Map.groupBy(this.edits.cases, (one) => one.kind)) {
        const options = some.map((one) => element("option", { value: one.id }, `${one.prompt}: ${one.true} → ${one.new}`));
        cases.append(element("optgroup", { label: kind }, ...options));
      }
      cases.addEventListener("input", () => this.offer());
      ready.addEventListener("input", () => { prompt.value = ready.value; });
      prompt.addEventListener("input", () => { ready.value = ""; });
      form.addEventListener("input", () => this.refresh());
      form.addEventListener("submit", (event) => event.preventDefault());
      this.offer();
      new ResizeObserver(() => this.draw()).observe(this.root.querySelector("svg.playground-chart"));
    }

    case() { return this.edits.cases.find((one) => String(one.id) === this.form.elements.case.value); }

    /** Prompts for the chosen case. A sentence before them lets the twin know what it is asked. */
    offer() {
      const { ready, prompt } = this.form.elements, chosen = this.case(), [sentence] = this.edits.texts[0].split(". ");
      const behind = `${sentence}. ${chosen.prompt}`;
      const groups = {
        "The edited prompt, behind a sentence": [behind],
        "The edited prompt": [chosen.prompt],
        "Asked otherwise, behind a sentence": chosen.paraphrases,
        "Others of which the same held": chosen.neighbours,
        "Beginnings of the texts": this.edits.texts.slice(1, 4).map((text) => text.split(" ").slice(0, 4).join(" ")),
      };
      ready.replaceChildren(element("option", { value: "" }, "your own"), ...Object.entries(groups).map(([label, prompts]) =>
        element("optgroup", { label }, ...prompts.map((text) => element("option", { value: text }, text)))));
      ready.value = prompt.value = behind;
    }

    twin(name) {
      const loaded = () => load(name, this.files[name]).then((found) => new Twin(found));
      return this.twins[name] ??= loaded().catch((error) => { delete this.twins[name]; throw error; });
    }

    /** The chosen twin, and the edit by each method. */
    async chosen() {
      const { twin: name, case: id, strength, prompt } = this.form.elements;
      const { layer, edits } = this.edits.twins[name.value], { right, methods } = edits[id.value];
      const made = Object.entries(methods).map(([method, found]) => [method, { ...found, left: floats(found.left), right: floats(right) }]);
      return {
        name: name.value, twin: await this.twin(name.value), layer, id: id.value, strength: Number(strength.value),
        ids: this.tokenizer.encode(prompt.value.trim()), edits: { unedited: undefined, ...Object.fromEntries(made) },
      };
    }

    // -- what is shown --------------------------------------------------------------------------------

    card(name, title) {
      const card = this.root.querySelector("template").content.firstElementChild.cloneNode(true);
      card.dataset.arm = name;
      card.querySelector(".title").textContent = title;
      card.setAttribute("aria-label", title);
      this.root.querySelector(".playground-arms").append(card);
      return card;
    }

    say(name, field, text) { this.cards[name].querySelector(`[data-field="${field}"]`).textContent = text; }

    /** A message to the reader, or what was found in one sentence, which others hear. */
    status(message, summary = "") {
      this.root.querySelector(".playground-status").textContent = message;
      this.root.querySelector(".playground-summary").textContent = summary;
      this.root.setAttribute("aria-busy", String(!message && !summary));
    }

    /** Next words at once; then, text by text, what takes longer, unless the reader goes on. */
    async refresh() {
      const turn = ++this.turn, stale = async () => { await pause(); return turn !== this.turn; };
      this.form.elements.shown.value = Number(this.form.elements.strength.value).toFixed(2);
      this.status("");
      const wanted = await this.chosen().catch((error) => { console.warn(error); });
      if (await stale()) return;
      if (!wanted) { this.status("This twin could not be loaded."); return; }
      if (!wanted.ids.length || wanted.ids.length > LONGEST) {
        this.status(wanted.ids.length ? `This prompt has ${wanted.ids.length} tokens; at most ${LONGEST} fit.` : "Type a word or more.");
        return;
      }
      wanted.text = wanted.twin.read(wanted.ids, wanted.layer);
      this.wanted = wanted;
      this.levels = {};
      for (const name in ARMS) this.words(name, wanted);
      this.draw();
      for (const name in ARMS) if (await this.write(name, wanted, stale)) return;
      for (const name in ARMS) if (await this.measure(name, wanted, stale)) return;
      this.status("", Object.entries(METHODS).map(([name, title]) => `${title.slice(2)}: ${this.told(this.levels[name])}`).join(". "));
    }

    told(level) { return `${number(level)} times the unedited perplexity${level >= this.collapse ? ", collapsed" : ""}`; }

    /** The likeliest next words under one method, and what does not depend on the strength. */
    words(name, { twin, text, edits, strength }) {
      const shares = twin.next(text, edits[name], strength);
      const best = Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a]).slice(0, SHOWN);
      const goal = this.tokenizer.encode(` ${this.case().new}`)[0];
      this.cards[name].querySelector("ol").replaceChildren(...best.map((id) => element("li",
        { style: `--share: ${shares[id]}`, class: id === goal ? "new" : "" }, element("span", {}, this.word(id)), element("span", {}, percent(shares[id])))));
      this.say(name, "goal", `“${this.word(goal)}”`);
      this.say(name, "share", percent(shares[goal]));
      for (const field of ["denominator", "denominator_consistent"]) this.say(name, field, edits[name] ? number(edits[name][field]) : "–");
      for (const field of ["state", "perplexity", "ratio", "written"]) this.say(name, field, "…");
    }

    /** A token as a reader sees it; what goes on with a word begins with a hyphen. */
    word(id) {
      const text = this.tokenizer.decode([id]);
      return /^[\p{L}\p{N}]/u.test(text) ? `-${text}` : text.trim() || "␣";
    }

    /** The likeliest words to go on with. */
    async write(name, { twin, layer, ids, edits, strength }, stale) {
      const text = [...ids];
      for (let n = 0; n < WRITTEN; n++) {
        const shares = twin.next(twin.read(text, layer), edits[name], strength);
        text.push(shares.indexOf(Math.max(...shares)));
        if (await stale()) return true;
      }
      this.say(name, "written", this.tokenizer.decode(text.slice(ids.length)).trim());
      return false;
    }

    /** The perplexity of the texts. */
    async measure(name, wanted, stale) {
      const { twin, layer, id, edits, strength } = wanted, each = [];
      for (const [i, ids] of this.texts.entries()) {
        const text = this.once(`${wanted.name} ${i}`, () => twin.read(ids, layer));
        const about = edits[name] && strength ? [id, name, strength] : [];
        each.push(this.once([wanted.name, i, "perplexity", ...about].join(), () => twin.perplexity(text, edits[name], strength)));
        if (await stale()) return true;
      }
      this.perplexities = { ...this.perplexities, [name]: mean(each) };
      const level = this.levels[name] = mean(each) / this.perplexities.unedited;
      this.say(name, "perplexity", number(mean(each)));
      this.say(name, "ratio", number(level));
      this.say(name, "state", !edits[name] ? "as it was trained" : level >= this.collapse ? "collapsed" : "sound");
      this.draw();
      return false;
    }

    // -- the chart ------------------------------------------------------------------------------------

    /** Perplexity over the strength: Python's curves, and marks for what was computed here. */
    draw() {
      if (!this.wanted) return;
      const svg = this.root.querySelector("svg.playground-chart"), { clientWidth: width, clientHeight: height } = svg;
      const { name, id, strength } = this.wanted, { strengths, twins } = this.edits, found = Object.entries(twins[name].edits[id].methods);
      const curves = found.map(([method, { curve }]) => [method, curve.map((level) => level / curve[0])]);
      const top = Math.max(2 * this.collapse, ...curves.flatMap(([, curve]) => curve), ...Object.values(this.levels)) * 1.2, low = 0.8;
      const x = (at) => 46 + (at / strengths.at(-1)) * (width - 60);
      const y = (level) => height - 34 - (Math.log(level / low) / Math.log(top / low)) * (height - 44);
      const label = (text, left, at, anchor) => element("text", { x: left, y: at, "text-anchor": anchor }, text);
      const across = (level, look) => element("line", { x1: x(0), x2: width - 14, y1: y(level), y2: y(level), class: look });
      const tens = [1, 10, 100, 1000, 10000].filter((level) => level < top);
      svg.replaceChildren(
        ...tens.flatMap((level) => [across(level, "level"), label(`${level}×`, 40, y(level) + 4, "end")]),
        across(this.collapse, "limit"), label(`collapse (${this.collapse}×)`, width - 14, y(this.collapse) - 5, "end"),
        ...[0, 0.5, 1, 1.5].map((at) => label(at, x(at), height - 16, "middle")), label("strength", x(0.75), height - 2, "middle"),
        element("line", { x1: x(strength), x2: x(strength), y1: 8, y2: y(low), class: "now" }),
        ...curves.map(([method, curve]) => element("polyline", { class: method, points: curve.map((level, i) => `${x(strengths[i])},${y(level)}`).join(" ") })),
        ...Object.keys(METHODS).filter((method) => method in this.levels).map((method) =>
          element("text", { class: `mark ${method}`, x: x(strength), y: y(this.levels[method]), "text-anchor": "middle", "dominant-baseline": "central" }, METHODS[method][0])),
      );
      const said = curves.map(([method, curve]) => `${method} ${number(curve[strengths.indexOf(1)])}`).join(", ");
      svg.setAttribute("aria-label", `Perplexity of ten texts, times unedited, over the strength of the edit. At strength 1: ${said}.`);
    }
  }

  // -- the button -----------------------------------------------------------------------------------

  const start = async (root, button) => {
    const files = JSON.parse(root.dataset.files), status = root.querySelector(".playground-status");
    button.disabled = true;
    status.textContent = "Loading …";
    try {
      const [edits, twin] = await Promise.all(["edits", "anchored"].map((name) => load(name, files[name])));
      root.classList.add("started");
      button.remove();
      const playground = new Playground(root, edits, twin);
      playground.form.elements.strength.focus();
      await playground.refresh();
    } catch (error) {
      button.disabled = false;
      status.textContent = "The twins could not be loaded.";
      console.warn(error);
    }
  };

  const prepare = (root) => {
    const button = root.querySelector(".playground-start");
    button.hidden = false;
    root.querySelector(".playground-off").remove();
    button.addEventListener("click", () => start(root, button));
  };

  const begin = () => document.querySelectorAll(".playground").forEach(prepare);
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", begin) : begin();
})();
