// Two runs of one analysis side by side, from runs.json and the two manifests. Data only ever becomes text, never markup.
const form = document.querySelector(".compare-form");
const status = document.getElementById("compare-status");
const answer = document.getElementById("comparison");

const make = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text !== null && text !== undefined) element.textContent = String(text);
  element.append(...children);
  return element;
};

const clipped = (value) => {
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "–";
  if (/^[0-9a-f]{40,}$/.test(text)) return `${text.slice(0, 12)}…`;
  return text.length > 200 ? `${text.slice(0, 200)}… (${text.length} characters)` : text;
};

const table = (caption, head, rows) => {
  const element = make("table", null, make("caption", caption));
  const cell = (tag, scope) => (content) => Object.assign(make(tag, content), scope && { scope });
  element.className = "table";
  element.append(make("thead", null, make("tr", null, ...head.map(cell("th", "col")))));
  element.append(make("tbody", null, ...rows.map(([name, ...rest]) => make("tr", null, cell("th", "row")(name), ...rest.map(cell("td"))))));
  const box = make("div", null, element);
  box.className = "compare-table";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", caption);
  return box;
};

// Nested entries by dotted name.
const flat = (value, prefix = "") =>
  Object.entries(value ?? {}).flatMap(([key, inner]) =>
    inner && typeof inner === "object" && !Array.isArray(inner) ? flat(inner, `${prefix}${key}.`) : [[`${prefix}${key}`, inner]]);

const differences = (title, a, b) => {
  const [left, right] = [new Map(flat(a)), new Map(flat(b))];
  const rows = [...new Set([...left.keys(), ...right.keys()])]
    .filter((name) => JSON.stringify(left.get(name)) !== JSON.stringify(right.get(name)))
    .map((name) => [name, clipped(left.get(name)), clipped(right.get(name))]);
  return rows.length ? table(`${title}: ${rows.length} ${rows.length === 1 ? "difference" : "differences"}`, ["", "A", "B"], rows) : make("p", `${title}: the same.`);
};

const change = (a, b) => {
  if (typeof a !== "number" || typeof b !== "number") return "differ";
  return (b - a).toLocaleString("en", { maximumSignificantDigits: 3, signDisplay: "exceptZero" }).replace("-", "−");
};

// The numbers that the book's verdicts rest on, then the others on request; those that are the same are only counted.
const numbers = (a, b) => {
  const other = new Map(b.map((entry) => [entry.name, entry]));
  const common = a.filter(({ name }) => other.has(name));
  const changed = common.filter(({ name, text }) => text !== other.get(name).text);
  const rows = (leading) => changed.filter((entry) => entry.leading === leading)
    .map(({ name, words, value, text }) => [words, clipped(text), clipped(other.get(name).text), change(value, other.get(name).value)]);
  const [first, rest] = [rows(true), rows(false)];
  const head = ["", "A", "B", "B − A"];
  const parts = [make("p", changed.length ? `${changed.length} of ${common.length} numbers differ.` : `All ${common.length} numbers are the same.`)];
  if (first.length) parts.push(table("What the book says of this analysis", head, first));
  if (rest.length) parts.push(make("details", null, make("summary", `${rest.length} more`), table("Further numbers", head, rest)));
  return parts;
};

const figures = (a, b) => {
  const named = (run) => new Map(run.files.filter((file) => /\/figures\/[^/]+\.(png|svg)$/.test(file)).map((file) => [file.split("/").pop(), file]));
  const [left, right] = [named(a), named(b)];
  return [...left.keys()].filter((name) => right.has(name)).map((name) => {
    const pair = make("div", null, ...[["A", a, left], ["B", b, right]].map(([side, run, files]) => {
      const image = make("img");
      image.src = files.get(name);
      image.alt = `Figure ${name} of run ${side}, ${run.run}; described on the run's page`;
      image.loading = "lazy";
      return make("figure", null, image, make("figcaption", `${side} · ${run.run}`));
    }));
    pair.className = "compare-pair";
    return make("section", null, make("h3", name.replace(/\.\w+$/, "")), pair);
  });
};

// What tells a run from others of its analysis; the longest part last, where a phone may cut it.
const label = (run) => [run.profile, run.started.slice(0, 10), run.run, run.published ? "" : "local", clipped(run.model ?? "")].filter(Boolean).join(" · ");

const link = (side, run) => {
  const anchor = make("a", label(run));
  anchor.href = run.page;
  return make("p", `${side}: `, anchor);
};

const json = async (address) => {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  return response.json();
};

const show = async (a, b) => {
  const [left, right] = await Promise.all([a, b].map((run) => json(run.page.replace("index.html", "manifest.json"))));
  answer.replaceChildren(
    link("A", a), link("B", b), make("h2", "Numbers"), ...numbers(a.numbers, b.numbers),
    make("h2", "What was asked, with what"),
    differences("Parameters", left.parameters, right.parameters),
    differences("Inputs", left.inputs, right.inputs),
    differences("Environment", { ...left.environment, git: left.git.commit }, { ...right.environment, git: right.git.commit }),
    differences("Hardware and time", { ...left.hardware, seconds: left.seconds }, { ...right.hardware, seconds: right.seconds }),
    make("h2", "Figures"), ...figures(a, b),
  );
  status.textContent = a.spec === b.spec
    ? "Same spec: both were asked the same, so differences come from machine and environment."
    : "Different specs: not the same was asked. What differs is listed below.";
};

const start = async () => {
  const { runs } = await json("runs.json");
  const asked = new URLSearchParams(location.search);
  const { analysis, a, b } = form.elements;
  const of = (name) => runs.filter((run) => run.analysis === name);
  const find = (id) => runs.find((run) => run.run === id);
  const names = [...new Set(runs.map((run) => run.analysis))].sort();
  analysis.append(...names.map((name) => new Option(`${name} (${of(name).length})`, name)));

  // Fill in the runs of the chosen analysis; the second is another than the first, if there is one.
  const choose = (one, other) => {
    const several = of(analysis.value);
    for (const select of [a, b]) select.replaceChildren(...several.map((run) => new Option(label(run), run.run)));
    a.value = (several.includes(one) ? one : several[0]).run;
    b.value = (several.includes(other) ? other : several.find((run) => run.run !== a.value) ?? several[0]).run;
    return update();
  };
  const update = async () => {
    const [one, other] = [find(a.value), find(b.value)];
    history.replaceState(null, "", `?a=${one.run}&b=${other.run}`);
    if (one !== other) return show(one, other).catch(() => { status.textContent = "A manifest could not be read; is the site complete?"; });
    answer.replaceChildren(link("A and B", one));
    status.textContent = of(analysis.value).length > 1 ? "This is one run, twice. Choose another." : `This is the only run of ${analysis.value}. Execute another to compare it with.`;
  };
  analysis.addEventListener("change", () => choose());
  for (const select of [a, b]) select.addEventListener("change", update);
  const first = find(asked.get("a"));
  analysis.value = first?.analysis ?? names.find((name) => of(name).length > 1) ?? names[0];
  form.hidden = false;
  await choose(first, find(asked.get("b")));
};

start().catch(() => {
  status.textContent = "The list of runs could not be read. Open this page through a web server, such as `make serve`.";
});
