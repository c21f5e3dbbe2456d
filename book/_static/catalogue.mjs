// Makes the tables of runs and of results sortable, searchable and filterable; without this script it is a plain table.
import DataTable from "./dt_bundle.js";

const asked = new URLSearchParams(location.search);

// What a reader sees is in the address, so that it can be linked.
const remember = (name, value) => {
  asked[value ? "set" : "delete"](name, value);
  history.replaceState(null, "", `${location.pathname}${asked.size ? `?${asked}` : ""}${location.hash}`);
};

// A labelled select that keeps the rows with one value in a column.
const filter = (table, header) => {
  const column = table.column(header).index();
  const name = header.textContent.trim();
  const told = (row) => table.cell(row, column).node().textContent;
  const values = [...new Set(table.rows().indexes().toArray().map(told))].filter(Boolean).sort();
  const select = document.createElement("select");
  select.className = "form-select form-select-sm";
  select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
  const apply = () => {
    const wanted = select.value;
    table.search.fixed(name, wanted ? (_, __, row) => told(row) === wanted : null).draw();
  };
  select.addEventListener("change", () => {
    apply();
    remember(name.toLowerCase(), select.value);
  });
  select.value = values.find((value) => value === asked.get(name.toLowerCase())) ?? "";
  apply();
  const label = document.createElement("label");
  label.textContent = name;
  select.id = label.htmlFor = `runs-by-${name.toLowerCase()}`;
  const part = document.createElement("div");
  part.append(label, select);
  return part;
};

const names = [...document.querySelectorAll(".runs-table th[scope=col]")].map((header) => header.textContent.trim().toLowerCase());

// `?sort=duration` or `?sort=-duration`.
function sorted() {
  const wanted = asked.get("sort") ?? "";
  const column = names.indexOf(wanted.replace("-", ""));
  return column < 0 ? [] : [[column, wanted.startsWith("-") ? "desc" : "asc"]];
}

new DataTable(".runs-table table", {
  paging: false,
  order: sorted(),
  search: { search: asked.get("search") ?? "" },
  autoWidth: false,
  layout: { topStart: "search", topEnd: "info", bottomStart: null, bottomEnd: null },
  language: { search: "Search", info: "_TOTAL_ shown", infoEmpty: "none shown", infoFiltered: "", zeroRecords: "Nothing is like that." },
  initComplete() {
    const table = this.api();
    const box = table.table().container();
    const [search, info] = [".dt-search", ".dt-info"].map((part) => box.querySelector(part));
    const bar = document.createElement("div");
    bar.className = "runs-filters";
    bar.append(...[...box.querySelectorAll("th[data-filter]")].map((header) => filter(table, header)), search, info);
    info.setAttribute("role", "status");
    box.closest(".runs-table").before(bar); // only the table scrolls sideways
    table.on("search", () => remember("search", table.search()));
    table.on("order", () => {
      const [[column, direction] = []] = table.order();
      remember("sort", column === undefined || !direction ? "" : `${direction === "desc" ? "-" : ""}${names[column]}`);
    });
  },
});
