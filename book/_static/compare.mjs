// Two runs side by side, from runs.json and the two manifests. Data only ever becomes text, never markup.
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

const spoken = (name, value) => {
  if (typeof value !== "number") return value === undefined ? "–" : clipped(value);
  if (name.endsWith("_share")) return `${Number((100 * value).toPrecision(3))} %`;
  return Number.isInteger(value) || Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
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

const differing = (a, b) => {
  const [left, right] = [new Map(flat(a)), new Map(flat(b))];
  return [...new Set([...left.keys(), ...right.keys()])]
    .filter((name) => JSON.stringify(left.get(name)) !== JSON.stringify(right.get(name)))
    .map((name) => [name, clipped(left.get(name)), clipped(right.get(name))]);
};

const differences = (title, a, b) => {
  const rows = differing(a, b);
  return rows.length ? table(`${title}: ${rows.length} ${rows.length === 1 ? "difference" : "differences"}`, ["", "A", "B"], rows) : make("p", `${title}: the same.`);
};

const interval = (metrics, name) => {
  const [low, high] = [metrics[`${name}_low`], metrics[`${name}_high`]];
  const value = spoken(name, metrics[name]);
  return low === undefined || high === undefined ? value : `${value} [${spoken(name, low)}, ${spoken(name, high)}]`;
};

const numbers = (a, b) => {
  const names = Object.keys(a).filter((name) => name in b);
  const bound = (name) => /_(low|high)$/.test(name) && names.includes(name.replace(/_(low|high)$/, ""));
  const rows = names.filter((name) => !bound(name)).map((name) => {
    const number = typeof a[name] === "number" && typeof b[name] === "number";
    const same = a[name] === b[name];
    const sign = number && b[name] > a[name] ? "+" : "";
    return { same, cells: [name, interval(a, name), interval(b, name), same ? "same" : number ? sign + spoken(name, b[name] - a[name]) : "differ"] };
  });
  if (!rows.length) return [make("p", "The runs have no headline number in common.")];
  const [changed, equal] = [rows.filter((row) => !row.same), rows.filter((row) => row.same)];
  const head = ["", "A", "B", "B − A"];
  const parts = [changed.length ? table(`Headline numbers: ${changed.length} of ${rows.length} changed`, head, changed.map((row) => row.cells)) : make("p", `All ${rows.length} headline numbers are the same.`)];
  if (equal.length && changed.length) parts.push(make("details", null, make("summary", `${equal.length} are the same`), table("Headline numbers that are the same", head.slice(0, 2), equal.map((row) => row.cells.slice(0, 2)))));
  return parts;
};

const figures = (a, b) => {
  const names = (run) => run.files.filter((file) => /\/figures\/[^/]+\.png$/.test(file)).map((file) => file.split("/").pop());
  const common = names(a).filter((name) => names(b).includes(name));
  return common.map((name) => {
    const pair = make("div", null, ...[["A", a], ["B", b]].map(([side, run]) => {
      const image = make("img");
      image.src = run.files.find((file) => file.endsWith(`/figures/${name}`));
      image.alt = `Figure ${name.replace(".png", "")} of run ${side}, ${run.run}; described on the run's page`;
      image.loading = "lazy";
      return make("figure", null, image, make("figcaption", `${side} · ${run.run}`));
    }));
    pair.className = "compare-pair";
    return make("section", null, make("h3", name.replace(".png", "")), pair);
  });
};

const label = (run) => [run.analysis, clipped(run.model ?? ""), run.profile, run.started.slice(0, 10), run.run].filter(Boolean).join(" · ");

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
  const verdict = a.run === b.run ? "This is one run, twice." : a.spec === b.spec
    ? "Same spec: both were asked the same, so differences come from machine and environment."
    : "Different specs: not the same was asked. What differs is listed below.";
  answer.replaceChildren(
    link("A", a), link("B", b), make("h2", "Numbers"), ...numbers(a.metrics, b.metrics),
    make("h2", "What was asked, with what"),
    differences("Parameters", left.parameters, right.parameters),
    differences("Inputs", left.inputs, right.inputs),
    differences("Environment", { ...left.environment, git: left.git.commit }, { ...right.environment, git: right.git.commit }),
    differences("Hardware and time", { ...left.hardware, seconds: left.seconds }, { ...right.hardware, seconds: right.seconds }),
    make("h2", "Figures"), ...figures(a, b),
  );
  status.textContent = verdict;
};

const start = async () => {
  const { runs } = await json("runs.json");
  const asked = new URLSearchParams(location.search);
  const find = (id) => runs.find((run) => run.run === id);
  const a = find(asked.get("a")) ?? runs[0];
  const b = find(asked.get("b")) ?? runs.find((run) => run.analysis === a.analysis && run !== a) ?? runs[1] ?? a;
  const sorted = [...runs].sort((one, other) => label(one).localeCompare(label(other)));
  for (const [select, chosen] of [[form.elements.a, a], [form.elements.b, b]]) {
    select.append(...sorted.map((run) => new Option(label(run), run.run)));
    select.value = chosen.run;
    select.addEventListener("change", update);
  }
  form.hidden = false;
  await update();
  async function update() {
    const [one, other] = [find(form.elements.a.value), find(form.elements.b.value)];
    history.replaceState(null, "", `?a=${one.run}&b=${other.run}`);
    await show(one, other).catch(() => { status.textContent = "A manifest could not be read; is the site complete?"; });
  }
};

start().catch(() => {
  status.textContent = "The list of runs could not be read. Open this page through a web server, such as `make serve`.";
});
