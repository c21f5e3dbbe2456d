/* Explore a picture: the button loads the data behind it, and Bokeh to draw it. See _ext/explore.py for what a data file
   holds. Without this script, there is the picture. */
"use strict";
(() => {
  const home = new URL("explore/", document.currentScript.src);
  const scripts = new Map();

  /** Load a script once; what it does stays in `window`. */
  const load = (name) => {
    if (!scripts.has(name)) {
      scripts.set(name, new Promise((done, failed) => {
        const script = element("script", { src: new URL(name, home).href });
        script.onload = done;
        script.onerror = () => { scripts.delete(name); script.remove(); failed(new Error(name)); };
        document.head.append(script);
      }));
    }
    return scripts.get(name);
  };

  /** An element with attributes and children; text is only ever text. */
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // -- the table of a data file ---------------------------------------------------------------------

  const value = (table, column, row) => {
    const values = table.rows[column] ?? { at: [], of: [] };
    return Array.isArray(values) ? values[row] : values.of[values.at[row]] ?? null;
  };

  const number = (shown) => {
    const size = Math.abs(shown);
    if (size >= 1e7 || (size < 1e-3 && size > 0)) return shown.toExponential(2);
    return shown.toLocaleString("en", size >= 1 ? { maximumFractionDigits: size >= 1000 ? 0 : 2 } : { maximumSignificantDigits: 3 });
  };

  const told = (table, column, row) => {
    const found = value(table, column, row);
    return found === null ? "–" : typeof found === "number" ? number(found) : found;
  };

  const rowsWhere = (table, holds) => table.rows[table.x].map((_, row) => row).filter(holds);

  /** Where a row is drawn: inf and nan at the rim, nothing measured nowhere. */
  const height = (table, row) => {
    const found = value(table, table.y, row);
    return typeof found === "string" ? table.rim : found;
  };

  // -- the plot -------------------------------------------------------------------------------------

  class Explorer {
    constructor(table, root, run) {
      this.table = table;
      this.run = run;
      this.views = Object.keys(table.levels);
      this.view = this.views[0];
      this.chosen = null;
      this.plot = element("div", { class: "explore-plot" });
      this.panel = element("div", { class: "explore-case" });
      this.note = element("p", { class: "explore-note", role: "status" });
      root.append(this.controls(), this.note, this.plot, this.panel);
    }

    async draw() {
      const item = structuredClone(this.table.plot);
      const manager = await Bokeh.embed.embed_item({ ...item, target_id: null }, this.plot);
      this.model = manager.roots[0].model.document;
      this.named("legend").ncols = this.plot.clientWidth < 520 ? 1 : 3;
      for (const series of this.series()) {
        const selected = this.source(series).selected;
        selected.properties.indices.change.connect(() => {
          if (this.picker && selected.indices.length) this.open(value(this.table, "case_id", this.source(series).data.row[selected.indices[0]]));
        });
      }
      this.show(this.view);
    }

    named(name) { return this.model.get_model_by_name(name); }
    source(name) { return this.named(name); }

    series() {
      const column = this.table.rows[this.table.series];
      return column.of;
    }

    /** Which view and which case: ordinary fields, so that a keyboard is enough. */
    controls() {
      const { table } = this;
      const fields = element("div", { class: "explore-fields" });
      const field = (label, options, act) => {
        const id = `explore-field-${document.querySelectorAll(".explore-fields select").length + fields.children.length}`;
        const select = element("select", { id }, ...options.map(([key, text]) => element("option", { value: key }, text)));
        select.addEventListener("change", () => act(select.value));
        fields.append(element("div", {}, element("label", { for: id }, label), select));
        return select;
      };
      if (this.views.length > 1) {
        this.switch = field(table.edit[table.view], this.views.map((name) => [name, name]), (name) => this.show(name));
      }
      if (!table.facts.case_id) return fields;
      const cases = new Map();
      for (const row of rowsWhere(table, (row) => value(table, "case_id", row) !== null)) {
        cases.set(value(table, "case_id", row), value(table, "prompt", row));
      }
      const sorted = [...cases].sort(([a], [b]) => a - b).map(([id, prompt]) => [id, prompt ? `${id} · ${prompt} …` : id]);
      this.picker = field("Case", [["", "choose one, or click a point"], ...sorted], (id) => this.open(id === "" ? null : Number(id)));
      return fields;
    }

    show(view) {
      const { table } = this;
      this.view = view;
      if (this.switch) this.switch.value = view;
      const shown = rowsWhere(table, (row) => value(table, table.view, row) === view && height(table, row) !== null);
      for (const series of this.series()) {
        const mine = shown.filter((row) => value(table, table.series, row) === series);
        this.source(series).selected.indices = [];
        this.source(series).data = this.columns(mine, table.tips);
        if (table.line) {
          this.source(`${series} lines`).data = this.lines(mine);
          this.source(`${series} median`).data = this.median(mine);
        }
      }
      if (table.ranges[view]) {
        const [left, right, low, high] = table.ranges[view];
        const { x_range, y_range } = this.model.roots()[0];
        x_range.setv({ start: left, end: right, reset_start: left, reset_end: right });
        y_range.setv({ start: low, end: high, reset_start: low, reset_end: high });
      }
      const names = ["unedited", "collapse", "inf or nan"];
      if (table.levels[view].length) [...table.levels[view], table.rim].forEach((level, i) => {
        if (level === null) return;
        this.named(names[i]).location = level;
        const text = i < 2 ? `${names[i]} (${number(level)})` : names[i];
        this.named(`${names[i]} label`).setv({ y: level, text });
      });
      this.ring();
    }

    columns(rows, tips = []) {
      const { table } = this;
      const columns = Object.fromEntries(tips.map((tip) => [tip, rows.map((row) => told(table, tip, row))]));
      return { ...columns, x: rows.map((row) => value(table, table.x, row)), y: rows.map((row) => height(table, row)), row: rows };
    }

    /** The points of each line, with a gap behind it. */
    lines(rows) {
      const parts = Map.groupBy(rows, (row) => value(this.table, this.table.line, row));
      const columns = { x: [], y: [], row: [] };
      for (const part of parts.values()) {
        const { x, y } = this.columns(part);
        columns.x.push(...x, NaN);
        columns.y.push(...y, NaN);
        columns.row.push(...part, -1);
      }
      return columns;
    }

    median(rows) {
      const steps = Map.groupBy(rows, (row) => value(this.table, this.table.x, row));
      const x = [...steps.keys()].sort((a, b) => a - b);
      const y = x.map((step) => {
        const sorted = steps.get(step).map((row) => height(this.table, row)).sort((a, b) => a - b);
        return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
      });
      return { x, y, row: x.map(() => -1) };
    }

    // -- a case -------------------------------------------------------------------------------------

    open(id) {
      this.chosen = id;
      this.picker.value = id ?? "";
      const views = rowsWhere(this.table, (row) => value(this.table, "case_id", row) === id).map((row) => value(this.table, this.table.view, row));
      if (id === null || views.includes(this.view)) this.ring();
      else this.show(views[0]);
      this.panel.replaceChildren(...(id === null ? [] : this.told(id)));
      this.note.textContent = id === null ? "" : `Case ${id} is described below the plot.`;
      if (id !== null) this.panel.scrollIntoView({ block: "nearest" });
    }

    ring() {
      const { table } = this;
      const mine = rowsWhere(table, (row) => this.chosen !== null && value(table, "case_id", row) === this.chosen
        && value(table, table.view, row) === this.view && height(table, row) !== null);
      this.source("chosen").data = this.columns(mine);
    }

    /** Everything there is about a case: what it is, and a table with a column for each of its edits. */
    told(id) {
      const { table } = this;
      const rows = rowsWhere(table, (row) => value(table, "case_id", row) === id);
      const facts = element("dl", {});
      for (const [name, label] of Object.entries(table.facts)) {
        if (name !== "case_id") facts.append(element("dt", {}, label), element("dd", {}, told(table, name, rows[0])));
      }
      const lines = Object.entries({ ...table.edit, ...table.measures }).filter(([name]) => rows.some((row) => value(table, name, row) !== null));
      const [head, ...body] = lines.map(([name, label], i) => element("tr", {}, element("th", { scope: i ? "row" : "col" }, label),
        ...rows.map((row) => element(i ? "td" : "th", i ? {} : { scope: "col" }, told(table, name, row)))));
      const edits = element("div", { class: "explore-edits", tabindex: 0, role: "region", "aria-label": `Edits of case ${id}` },
        element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
      const parts = [element("p", { class: "explore-title" }, `Case ${id}`), facts, edits];
      if (this.run) parts.push(element("p", {}, element("a", { href: this.run }, "The run behind this")));
      return parts;
    }
  }

  // -- the button -----------------------------------------------------------------------------------

  const prepare = (root) => {
    const picture = root.firstElementChild;
    const button = element("button", { type: "button", class: "explore-button" }, "Explore");
    const status = element("span", { role: "status" });
    const live = element("div", { class: "explore-live", role: "group", "aria-label": `Interactive plot. ${root.dataset.about}`, hidden: "" });
    let drawn = null;

    const draw = async () => {
      const name = root.dataset.explore;
      await load(`${name}.js`);
      const table = window.editlibExplore[name];
      await load(table.script);
      live.replaceChildren();
      const explorer = new Explorer(table, live, root.dataset.run);
      await explorer.draw();
      return explorer;
    };

    const exchange = (closer) => {
      picture.hidden = closer;
      live.hidden = !closer;
      button.textContent = closer ? "Show picture" : "Explore";
    };

    button.addEventListener("click", async () => {
      if (!live.hidden) return exchange(false);
      exchange(true); // the plot measures the place it has
      status.textContent = "Loading …";
      try {
        drawn ??= draw();
        await drawn;
        status.textContent = "";
      } catch (error) {
        drawn = null;
        exchange(false);
        status.textContent = "The plot could not be loaded.";
        console.warn(error);
      }
    });
    root.prepend(element("div", { class: "explore-bar" }, status, button));
    root.append(live);
  };

  const start = () => document.querySelectorAll(".explore").forEach(prepare);
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
