// The page: filters, cards, one sample at a time.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const show = { prompt: true, visual: true, dim: true };
const SIGN = { right: "✓ right", wrong: "✗ wrong", unknown: "? unknown" };
let chosen = [], judged = [], page = 0, open = -1, heatTimer = 0;

function number(value, digits = 3) {
  return value === undefined || value === null ? "–" : String(Number(value.toPrecision(digits)));
}
function percent(share, digits = 0) { return `${(share * 100).toFixed(digits)} %`; }
const grouped = (n) => n.toLocaleString("en").replaceAll(",", " ");
const plural = (n, word) => `${grouped(n)} ${word}${n === 1 ? "" : "s"}`;
const foreign = (tag, text, name = "") => make(tag, { className: `foreign ${name}`, dir: "auto" }, text);

const etas = data.samples.map(etaOf).filter((eta) => eta !== undefined);
const range = etas.length ? axis(etas.reduce((a, b) => Math.min(a, b)), etas.reduce((a, b) => Math.max(a, b))) : axis(0, 2);

function fill(select, names, any) {
  const counts = new Map();
  for (const s of data.samples) counts.set(s[select.id], (counts.get(s[select.id]) || 0) + 1);
  select.replaceChildren(make("option", { value: "" }, any));
  names.forEach((name, i) => select.append(make("option", { value: String(i) }, `${name} (${grouped(counts.get(i) || 0)})`)));
}

function filter() {
  const bound = (id) => (at(id).value.trim() === "" || !Number.isFinite(Number(at(id).value)) ? null : Number(at(id).value));
  return { task: at("task").value, right: at("right").value, rule: at("rule").value, low: bound("low"), high: bound("high"),
    text: at("text").value.trim().toLowerCase() };
}

function select() {
  const wanted = filter();
  judged = data.samples.filter((sample) => matches(sample, { ...wanted, right: "" })); // what a share right is a share of
  chosen = ordered(data.samples.filter((sample) => matches(sample, wanted)), at("order").value);
  page = 0;
  summarise();
  turn();
}

// ------------------------------------------------------------------------------------------------------------------
// Summary of what is selected

function summarise() {
  const n = chosen.length, known = judged.filter((s) => s.right !== null), right = known.filter((s) => s.right).length;
  at("count").textContent = n === data.samples.length ? `All ${plural(n, "sample")}` : `${grouped(n)} of ${plural(data.samples.length, "sample")}`;
  const of = (read) => chosen.map(read).filter((v) => v !== undefined && v !== null);
  const first = (name) => of((s) => s.records[0][name]);
  const figures = [];
  const figure = (name, value, note = "") => figures.push(make("div", {}, make("dt", {}, name), make("dd", {}, value, " ", make("small", {}, note))));
  if (known.length) {
    const [share, low, high] = wilson(right, known.length);
    const all = known.length === n || !at("right").value ? "" : ", any result";
    figure("right", percent(share, 1), `${grouped(right)} of ${grouped(known.length)}${all}; 95 %: ${percent(low, 1)} to ${percent(high, 1)}`);
  }
  if (n) figure("kept, mean", `${number(mean(first("K")))}`, `of ${number(mean(first("N")))} visual tokens`);
  const means = first("mean");
  if (means.length) figure("mean tokens a layer", number(mean(means)));
  for (const [key, name] of [["eta", "η, median"], ["eps_p", "ε_p, median"], ["eps_v", "ε_v, median"]]) {
    const values = first(key);
    if (values.length) figure(name, number(median(values)));
  }
  const times = first("milliseconds");
  if (times.length) figure("selection, median", `${number(median(times))} ms`);
  at("figures").replaceChildren(...figures);
  if (!at("summary").open) return;
  drawHistograms(at("histograms"), chosen, data.tasks, range);
  drawAccuracy(at("accuracy"), judged);
  const shapes = shapesOf(chosen), before = at("shape").value;
  at("shape").replaceChildren(...shapes.slice(0, 30).map(([shape, views]) => make("option", { value: shape }, `${shape} (${grouped(views)} views)`)));
  if (shapes.length > 1) at("shape").prepend(make("option", { value: "" }, "all shapes, normalised"));
  at("shape").value = [...at("shape").options].some((o) => o.value === before) && before ? before : at("shape").options[0]?.value ?? "";
  // Many cells: after the rest is on the screen.
  clearTimeout(heatTimer);
  heatTimer = setTimeout(() => drawHeat(at("heat"), heatOf(chosen, at("shape").value, 24)), 0);
}

// ------------------------------------------------------------------------------------------------------------------
// Cards, page by page

const pageSize = () => Number(at("size").value);
const pageCount = () => Math.max(1, Math.ceil(chosen.length / pageSize()));

function turn(by = 0) {
  page = Math.max(0, Math.min(pageCount() - 1, page + by));
  const start = page * pageSize(), end = Math.min(chosen.length, start + pageSize());
  at("samples").replaceChildren(...chosen.slice(start, end).map((sample, i) => make("li", {}, card(sample, start + i))));
  if (!chosen.length) at("samples").append(make("li", { className: "none" }, "No sample fits these filters."));
  at("page").value = page + 1;
  at("page").max = pageCount();
  at("pages").textContent = grouped(pageCount());
  at("where").textContent = chosen.length ? `${grouped(start + 1)} to ${grouped(end)} of ${grouped(chosen.length)}` : "none";
  for (const button of document.querySelectorAll("[data-page]")) button.disabled = button.dataset.page < 0 ? page === 0 : page === pageCount() - 1;
}

function card(sample, index) {
  const record = sample.records[0], result = resultOf(sample);
  const numbers = `K ${record.K} of ${record.N} · K_p ${record.K_p} · k ${record.k} · η ${number(record.eta)}` +
    (record.milliseconds === undefined ? "" : ` · ${number(record.milliseconds)}\u00a0ms`);
  const said = make("span", { className: "said" },
    make("span", { className: "head" }, make("span", { className: "task" }, `${data.tasks[sample.task]} · ${sample.id}`), badge(result)),
    foreign("span", sample.question || "(no question in the log)", "question"),
    pair("answer", sample.answer), pair("target", sample.targets.join(" / ")), make("span", { className: "numbers" }, numbers));
  const button = make("button", { type: "button", className: "card" }, well(sample, record), said);
  button.addEventListener("click", () => openSample(index));
  return button;
}

const badge = (result) => make("span", { className: `badge ${result}` }, SIGN[result]);
const pair = (term, text) => make("span", { className: "pair" }, make("span", { className: "term" }, term), foreign("span", text || "–"));
const pictureOf = (sample, view) => sample.pictures[view.picture] || { shots: [], name: "" };

// The first views of a sample, as large as they fit beside each other.
function well(sample, record) {
  const views = viewsOf(record), shown = views.slice(0, views.length > 4 ? 4 : views.length), n = shown.length;
  const box = make("span", { className: "well" });
  const columns = n > 2 ? 2 : 1, rows = Math.ceil(n / columns), wide = n === 2 && aspectOf(pictureOf(sample, shown[0]), shown[0]) < 1.4;
  const most = wide ? [132, 208] : [268 / columns - 4, 210 / rows - 3];
  for (const view of shown) {
    const picture = pictureOf(sample, view), width = Math.min(most[0], most[1] * aspectOf(picture, view));
    box.append(panel(picture, view, width, show, at("seen").value));
  }
  if (!n) box.append(make("span", { className: "none" }, record.N ? "no grid in the log" : "no picture in this sample"));
  if (views.length > n) box.append(make("span", { className: "more" }, `+ ${views.length - n} views`));
  return box;
}

// ------------------------------------------------------------------------------------------------------------------
// One sample

function openSample(index) {
  open = index;
  const sample = chosen[index];
  at("detail-title").replaceChildren(`${data.tasks[sample.task]} · ${sample.id} `, badge(resultOf(sample)));
  at("before").disabled = index === 0;
  at("after").disabled = index === chosen.length - 1;
  if (!at("detail").open) at("detail").showModal();
  for (const part of ["said", "views", "facts"]) at(part).replaceChildren();
  tellSample(sample);
  sample.records.forEach((record, i) => drawRecord(at("views"), sample, record, i));
  at("detail").scrollTop = 0;
}

function drawRecord(target, sample, record, i) {
  const views = viewsOf(record), many = views.length > 4;
  if (sample.records.length > 1) target.append(make("h3", {}, `Request ${i + 1} of ${sample.records.length}`));
  const room = target.clientWidth || 600, across = many ? Math.max(2, Math.floor(room / 190)) : views.length > 1 && room > 660 ? 2 : 1;
  const limit = many ? 300 : 560;
  target.className = `views ${many ? "many" : across === 1 ? "one" : ""}`;
  for (const view of views) {
    const picture = pictureOf(sample, view), width = Math.min((room - (across - 1) * 13) / across, limit * aspectOf(picture, view), 720);
    const canvas = panel(picture, view, width, show, at("seen").value);
    const where = view.of > 1 ? `${picture.shots.length > 1 ? "frame" : "view"} ${view.place + 1} of ${view.of}` : "";
    const words = many ? [view.place ? "" : picture.name, where, count(view)] : [picture.name, where, tell(picture, view)];
    target.append(make("figure", {}, canvas, foreign("figcaption", words.filter(Boolean).join(" · "))));
  }
  if (!views.length) target.append(make("p", { className: "none" }, record.N ? "The log does not say where these tokens lie." : "No picture in this sample."));
  if (record.loose) target.append(make("p", { className: "none" }, `${record.loose} kept tokens lie in no cell (newlines, or tokens without a place).`));
}

function tellSample(sample) {
  const target = at("facts"), say = (name, text) => at("said").append(make("h3", {}, name), foreign("p", text || "–"));
  say("Question", sample.question);
  say("Answer", sample.answer);
  say("Target", sample.targets.join(" / "));
  sample.records.forEach((record, i) => {
    const list = make("dl"), add = (name, value) => list.append(make("dt", {}, name), make("dd", {}, value));
    if (sample.records.length > 1) target.append(make("h3", {}, `Request ${i + 1}`));
    add("N, visual tokens", grouped(record.N));
    add("K, kept", `${grouped(record.K)}${record.N ? ` (${percent(record.K / record.N, 1)})` : ""}`);
    add("K_p, prompt centres", `${record.K_p} asked for, ${record.prompt} kept`);
    add("k, covering fold", String(record.k));
    add("rule", record.method);
    add("layer", String(record.layer));
    for (const stage of record.stages) {
      add(stage.layer ? `before, at layer ${stage.layer}` : "before the decoder", `${stage.method}, ${grouped(stage.N)} to ${grouped(stage.K)} tokens${stage.radius === null ? "" : `, radius ${number(stage.radius)}`}`);
    }
    if (record.mean !== undefined) add("mean tokens a layer", number(record.mean, 4));
    add("η", number(record.eta, 4));
    add("ε_p", number(record.eps_p, 4));
    add("ε_v", number(record.eps_v, 4));
    if (record.milliseconds !== undefined) add("selection", `${number(record.milliseconds)} ms`);
    target.append(list);
  });
  const list = make("dl");
  list.append(make("dt", {}, "result from"), foreign("dd", sample.why || "nothing in the log"), make("dt", {}, "read from"), foreign("dd", sample.source));
  target.append(list);
}

function redraw() {
  for (const box of document.querySelectorAll("[data-show]")) box.checked = show[box.dataset.show];
  for (const canvas of document.querySelectorAll(".well canvas, .views canvas")) canvas.redraw(show, at("seen").value);
}

function step(by) {
  if (open + by < 0 || open + by >= chosen.length) return;
  openSample(open + by);
}

// ------------------------------------------------------------------------------------------------------------------
// Start

function introduce() {
  const about = data.about, notes = [];
  at("about").textContent = `${plural(data.samples.length, "sample")} from ${about.files.length > 3 ? `${about.files.slice(0, 2).join(", ")} and ${about.files.length - 2} more files` : about.files.join(", ")}`;
  for (const [reason, count] of Object.entries(data.trouble)) notes.push(`${plural(count, "sample")} with a picture ${reason}: grids are drawn without it.`);
  if (!about.images) notes.push("Made without pictures: grids only.");
  if (about.without) notes.push(`${plural(about.without, "line")} without retained patches left out.`);
  at("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
  at("notes").hidden = !notes.length;
  const side = about.side ? ` Pictures reduced to ${about.side} pixels.` : "";
  at("made").textContent = `Made ${about.date} by mob.audit${about.version ? ` ${about.version}` : ""}.${side} η, ε_p and ε_v are Hausdorff radii in 0 to 2; ` +
    "right means a metric of at least 0.5, or an answer equal to a target." + (about.files.length > 3 ? ` Files: ${about.files.join(", ")}.` : "");
  fill(at("task"), data.tasks, "all");
  fill(at("rule"), data.rules, "any");
  at("rule-label").hidden = data.rules.length < 2;
  at("seen").value = data.seen;
  at("seen-label").hidden = !data.samples.some((s) => s.pictures.some((p, i) => {
    const grids = s.records[0].grids[i] || [];
    return !p.box && p.size && p.size[0] !== p.size[1] && grids.length === 1 && grids[0][0] === grids[0][1];
  }));
}

introduce();
at("summary").open = window.matchMedia("(min-width: 46rem)").matches; // on a phone the samples come first
let typing = 0;
at("filters").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(select, event.target.tagName === "SELECT" ? 0 : 150);
});
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("reset", () => setTimeout(select, 0));
at("summary").addEventListener("toggle", () => at("summary").open && summarise());
at("shape").addEventListener("change", () => drawHeat(at("heat"), heatOf(chosen, at("shape").value, 24)));
at("seen").addEventListener("change", redraw);
at("size").addEventListener("change", () => { page = 0; turn(); });
at("page").addEventListener("change", () => { page = Math.trunc(Number(at("page").value) || 1) - 1; turn(); });
for (const box of document.querySelectorAll("[data-show]")) box.addEventListener("change", () => { show[box.dataset.show] = box.checked; redraw(); });
for (const button of document.querySelectorAll("[data-page]")) button.addEventListener("click", () => {
  turn(Number(button.dataset.page));
  if (button.closest(".end")) { at("samples").scrollIntoView(); at("samples").focus({ preventScroll: true }); }
});
at("before").addEventListener("click", () => step(-1));
at("after").addEventListener("click", () => step(1));
at("close").addEventListener("click", () => at("detail").close());
at("detail").addEventListener("click", (event) => event.target === at("detail") && at("detail").close());
at("detail").addEventListener("close", () => {
  const was = open; // the card of the sample that was looked at last gets the focus
  open = -1;
  if (Math.floor(was / pageSize()) !== page) { page = Math.floor(was / pageSize()); turn(); }
  at("samples").querySelectorAll(".card")[was - page * pageSize()]?.focus();
});
document.addEventListener("keydown", (event) => {
  if (!at("detail").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const kind = { p: "prompt", v: "visual", d: "dim" }[event.key.toLowerCase()];
  if (kind) { show[kind] = !show[kind]; redraw(); }
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else return;
  event.preventDefault();
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", summarise);
select();
