"use strict";
// What the page knows and counts. Nothing here touches the document: Node can test it.

const DROPPED = 0, VISUAL = 1, PROMPT = 2;

// Views of a record that have a grid: {picture, view, place, of, rows, columns, cells}, cells holding one state a cell.
// place and of count the views with a grid of the same picture. Unpacked once.
function viewsOf(record) {
  if (record.views) return record.views;
  const packed = atob(record.cells), views = [];
  let at = 0;
  record.grids.forEach((grids, picture) => {
    const mine = [];
    grids.forEach(([rows, columns], view) => {
      const cells = new Uint8Array(rows * columns);
      for (let i = 0; i < cells.length; i++, at++) cells[i] = (packed.charCodeAt(at >> 2) >> ((at & 3) * 2)) & 3;
      if (cells.length) mine.push({ picture, view, place: mine.length, rows, columns, cells });
    });
    for (const one of mine) views.push(Object.assign(one, { of: mine.length }));
  });
  return (record.views = views);
}

const etaOf = (sample) => sample.records[0].eta;
const resultOf = (sample) => (sample.right === null ? "unknown" : sample.right ? "right" : "wrong");

function matches(sample, filter) {
  if (filter.task !== "" && sample.task !== Number(filter.task)) return false;
  if (filter.right !== "" && resultOf(sample) !== filter.right) return false;
  if (filter.rule !== "" && sample.rule !== Number(filter.rule)) return false;
  const eta = etaOf(sample);
  if (filter.low !== null && !(eta >= filter.low)) return false;
  if (filter.high !== null && !(eta <= filter.high)) return false;
  if (filter.text === "") return true;
  sample.words ??= [sample.id, sample.question, sample.answer, ...sample.targets].join("\n").toLowerCase();
  return sample.words.includes(filter.text);
}

// Samples in the order asked for; those without the number come last. Sorting is stable.
function ordered(samples, order) {
  if (order === "file") return samples;
  const key = order === "few"
    ? (s) => (s.records[0].N ? s.records[0].K / s.records[0].N : Infinity)
    : (s) => etaOf(s) ?? (order === "up" ? Infinity : -Infinity);
  const sign = order === "down" ? -1 : 1;
  return samples.map((s) => [key(s), s]).sort((a, b) => (a[0] === b[0] ? 0 : sign * (a[0] < b[0] ? -1 : 1))).map((p) => p[1]);
}

function median(values) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);

// [share, low, high]: Wilson's 95 % interval of right of n.
function wilson(right, n) {
  const z = 1.959964, p = right / n, d = 1 + (z * z) / n;
  const middle = (p + (z * z) / (2 * n)) / d, half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / d;
  return [p, Math.max(0, middle - half), Math.min(1, middle + half)];
}

function histogram(values, low, high, bins) {
  const counts = new Array(bins).fill(0);
  for (const v of values) counts[Math.min(bins - 1, Math.max(0, Math.floor(((v - low) / (high - low || 1)) * bins)))]++;
  return counts;
}

// Round ends and steps of an axis for values from low to high.
function axis(low, high) {
  if (!(high > low)) [low, high] = [low - 0.05, high + 0.05];
  const raw = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((f) => f * unit >= raw - 1e-12);
  const from = Math.floor(low / step + 1e-9) * step, ticks = [];
  for (let i = 0; from + (i - 1) * step < high - 1e-9 || i < 2; i++) ticks.push(Number((from + i * step).toPrecision(6)));
  return { low: ticks[0], high: ticks[ticks.length - 1], ticks };
}

// Points of the plot of accuracy against eta: at most `most` groups of equal size, of at least 5 samples.
function accuracyByEta(samples, most) {
  const known = samples.filter((s) => s.right !== null && etaOf(s) !== undefined).sort((a, b) => etaOf(a) - etaOf(b));
  const groups = Math.max(1, Math.min(most, Math.floor(known.length / 5))), points = [];
  for (let g = 0; g < groups && known.length; g++) {
    const part = known.slice(Math.floor((g * known.length) / groups), Math.floor(((g + 1) * known.length) / groups));
    const right = part.filter((s) => s.right).length, [share, low, high] = wilson(right, part.length);
    points.push({ eta: mean(part.map(etaOf)), from: etaOf(part[0]), to: etaOf(part[part.length - 1]), share, low, high, right, n: part.length });
  }
  return points;
}

// Grid shapes "RxC" -> number of views, most frequent first.
function shapesOf(samples) {
  const counts = new Map();
  for (const s of samples) for (const r of s.records) for (const grids of r.grids) for (const [rows, columns] of grids)
    if (rows * columns) counts.set(`${rows} × ${columns}`, (counts.get(`${rows} × ${columns}`) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

// How often a cell was kept: {rows, columns, views, prompt, visual}, shares in 0..1 a cell. shape "" lays all shapes
// over one grid of `side` x `side`; a cell counts where its middle lies.
function heatOf(samples, shape, side) {
  let sums = null, seen = 0;
  const all = shape === "";
  for (const sample of samples) for (const record of sample.records) for (const v of viewsOf(record)) {
    if (!all && `${v.rows} × ${v.columns}` !== shape) continue;
    const rows = all ? side : v.rows, columns = all ? side : v.columns;
    sums ??= { rows, columns, n: new Float64Array(rows * columns), prompt: new Float64Array(rows * columns), visual: new Float64Array(rows * columns) };
    seen++;
    if (!all) {
      for (let i = 0; i < v.cells.length; i++) {
        sums.n[i]++;
        if (v.cells[i]) (v.cells[i] === PROMPT ? sums.prompt : sums.visual)[i]++;
      }
      continue;
    }
    // Every cell of the common grid looks up the cell that lies under its middle.
    for (let y = 0; y < side; y++) {
      const row = Math.floor(((y + 0.5) / side) * v.rows) * v.columns;
      for (let x = 0; x < side; x++) {
        const state = v.cells[row + Math.floor(((x + 0.5) / side) * v.columns)], i = y * side + x;
        sums.n[i]++;
        if (state) (state === PROMPT ? sums.prompt : sums.visual)[i]++;
      }
    }
  }
  if (!sums) return null;
  const share = (part) => Array.from(part, (v, i) => (sums.n[i] ? v / sums.n[i] : 0));
  return { rows: sums.rows, columns: sums.columns, views: seen, prompt: share(sums.prompt), visual: share(sums.visual) };
}

// The region of a picture that a grid covers, as shares of its sides: [left, top, right, bottom].
function boxOf(picture, view, seen) {
  if (picture.box) return picture.box;
  const [width, height] = picture.size || [1, 1];
  if (seen === "whole" || view.of > 1 || view.rows !== view.columns || width === height) return [0, 0, 1, 1];
  const side = seen === "pad" ? Math.max(width, height) : Math.min(width, height);
  const x = (1 - side / width) / 2, y = (1 - side / height) / 2;
  return [x, y, 1 - x, 1 - y];
}

// Pixels [x0, y0, x1, y1] of a cell on a canvas, cut to it; null where it lies in the padding.
function cellBox(box, view, index, width, height) {
  const row = Math.floor(index / view.columns), column = index % view.columns;
  const wide = (box[2] - box[0]) / view.columns, high = (box[3] - box[1]) / view.rows;
  const at = (share, most) => Math.max(0, Math.min(most, Math.round(share * most)));
  const cell = [at(box[0] + column * wide, width), at(box[1] + row * high, height),
    at(box[0] + (column + 1) * wide, width), at(box[1] + (row + 1) * high, height)];
  return cell[0] < cell[2] && cell[1] < cell[3] ? cell : null;
}

if (typeof module !== "undefined") module.exports = {
  viewsOf, matches, ordered, median, mean, wilson, histogram, axis, accuracyByEta, shapesOf, heatOf, boxOf, cellBox };
