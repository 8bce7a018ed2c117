// Plots as SVG, made of elements; sizes in user units of the view box.

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const HISTOGRAM = { width: 180, height: 92, left: 4, bottom: 18, top: 18, bins: 24, most: 12 };

// One small histogram of eta for each task, all over the same axis; the largest tasks first where there are many.
function drawHistograms(target, samples, tasks, range) {
  const byTask = new Map();
  for (const s of samples) if (etaOf(s) !== undefined) {
    if (!byTask.has(s.task)) byTask.set(s.task, []);
    byTask.get(s.task).push(etaOf(s));
  }
  const rows = [...byTask].sort((a, b) => (byTask.size > HISTOGRAM.most ? b[1].length - a[1].length : a[0] - b[0]));
  target.replaceChildren(...rows.slice(0, HISTOGRAM.most).map(([task, values]) => histogramOf(tasks[task], values, range)));
  if (rows.length > HISTOGRAM.most) target.append(make("p", { className: "none" }, `and ${rows.length - HISTOGRAM.most} smaller tasks`));
  if (!rows.length) target.append(make("p", { className: "none" }, "No sample with a radius is selected."));
}

function histogramOf(name, values, range) {
  const { width, height, left, bottom, top, bins } = HISTOGRAM;
  const counts = histogram(values, range.low, range.high, bins), most = Math.max(...counts);
  const x = (v) => left + ((v - range.low) / (range.high - range.low)) * (width - 2 * left);
  const middle = median(values), base = height - bottom;
  const label = `${name}: ${values.length} samples, median eta ${number(middle)}`;
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const shown = name.length > 22 ? `${name.slice(0, 21)}…` : name;
  plot.append(svg("title", {}, label), svg("text", { x: left, y: 12, class: "name" }, shown));
  plot.append(svg("text", { x: width - left, y: 12, "text-anchor": "end" }, String(values.length)));
  counts.forEach((count, i) => {
    if (!count) return;
    const from = range.low + (i * (range.high - range.low)) / bins, to = range.low + ((i + 1) * (range.high - range.low)) / bins;
    const tall = (count / most) * (base - top);
    const bar = svg("rect", { x: x(from) + 0.5, y: base - tall, width: Math.max(1, x(to) - x(from) - 1), height: tall, class: "bar-fill" });
    bar.append(svg("title", {}, `${number(from)} to ${number(to)}: ${count}`));
    plot.append(bar);
  });
  plot.append(svg("line", { x1: left, x2: width - left, y1: base, y2: base, class: "axis" }));
  plot.append(svg("line", { x1: x(middle), x2: x(middle), y1: top, y2: base, class: "median" }));
  plot.append(svg("text", { x: left, y: height - 4 }, number(range.low)));
  plot.append(svg("text", { x: width - left, y: height - 4, "text-anchor": "end" }, number(range.high)));
  return plot;
}

function drawAccuracy(target, samples) {
  const points = accuracyByEta(samples, 10);
  if (!points.length) {
    target.replaceChildren(make("p", { className: "none" }, "No sample with both a radius and a known result is selected."));
    return;
  }
  const width = 360, height = 220, left = 40, right = 12, top = 10, bottom = 34;
  const range = axis(points[0].from, points[points.length - 1].to);
  const x = (v) => left + ((v - range.low) / (range.high - range.low)) * (width - left - right);
  const y = (v) => top + (1 - v) * (height - top - bottom);
  const label = `Share right against eta: ${points.map((p) => `${percent(p.share)} at ${number(p.eta)}`).join(", ")}`;
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    plot.append(svg("line", { x1: left, x2: width - right, y1: y(share), y2: y(share), class: share ? "grid" : "axis" }));
    plot.append(svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
  }
  for (const tick of range.ticks) plot.append(svg("text", { x: x(tick), y: height - bottom + 15, "text-anchor": "middle" }, number(tick)));
  plot.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "η"));
  plot.append(svg("polyline", { points: points.map((p) => `${x(p.eta)},${y(p.share)}`).join(" "), class: "curve" }));
  for (const p of points) {
    const group = svg("g", {}, svg("title", {}, `η ${number(p.from)} to ${number(p.to)}: ${p.right} of ${p.n} right`));
    group.append(svg("line", { x1: x(p.eta), x2: x(p.eta), y1: y(p.low), y2: y(p.high), class: "interval" }));
    group.append(svg("circle", { cx: x(p.eta), cy: y(p.share), r: 5, class: "point" }));
    plot.append(group);
  }
  target.replaceChildren(plot);
}

// Two maps, prompt centres and visual centres; the darkest colour is the largest share of either.
function drawHeat(target, heat) {
  if (!heat) {
    target.replaceChildren(make("p", { className: "none" }, "No view with a grid is selected."));
    return;
  }
  const parts = ["prompt", "visual"].map((kind) => {
    const most = Math.max(...heat[kind]), canvas = make("canvas", { width: heat.columns, height: heat.rows, role: "img" });
    const pen = canvas.getContext("2d");
    pen.fillStyle = COLOUR[kind];
    heat[kind].forEach((share, i) => {
      pen.globalAlpha = most ? share / most : 0;
      pen.fillRect(i % heat.columns, Math.floor(i / heat.columns), 1, 1);
    });
    const text = `${kind} centres; full colour: kept in ${percent(most, 1)} of ${grouped(heat.views)} views`;
    canvas.setAttribute("aria-label", text);
    canvas.style.aspectRatio = `${heat.columns} / ${heat.rows}`;
    return make("div", {}, canvas, text);
  });
  target.replaceChildren(...parts);
}
