// Drawing on canvases: pictures with the kept patches over them.

const STYLE = getComputedStyle(document.documentElement);
const COLOUR = { prompt: STYLE.getPropertyValue("--prompt"), visual: STYLE.getPropertyValue("--visual") };
const DIM = 0.62;
const loaded = new Map(); // picture number -> promise of an image; the oldest are let go
const MOST_LOADED = 160;

// An element with properties and children. Texts become text nodes: nothing that a data set says is ever markup.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const loadedAll = new Promise((done) => {
  if (document.readyState !== "loading") done();
  else document.addEventListener("DOMContentLoaded", () => done());
});

// A picture of the page by its number; the file's later pictures may still be on their way.
function load(number) {
  if (!loaded.has(number)) {
    loaded.set(number, (async () => {
      let block = document.getElementById(`p${number}`);
      if (!block || !block.nextSibling) { await loadedAll; block = document.getElementById(`p${number}`); }
      const image = new Image();
      image.src = block.textContent;
      await image.decode();
      return image;
    })());
    if (loaded.size > MOST_LOADED) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(number);
}

// Width over height of a view on the screen.
function aspectOf(picture, view) {
  const [width, height] = picture.size || [view.columns, view.rows];
  return Math.min(6, Math.max(1 / 6, width / height));
}

// A canvas of one view, `width` CSS pixels wide; its picture comes when it is decoded. `show`: what to draw.
function panel(picture, view, width, show, seen) {
  const ratio = Math.min(2, window.devicePixelRatio || 1), height = width / aspectOf(picture, view);
  const canvas = make("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio), role: "img" });
  canvas.style.width = `${Math.round(width)}px`;
  canvas.style.height = `${Math.round(height)}px`;
  canvas.setAttribute("aria-label", tell(picture, view));
  const shot = picture.shots.length ? picture.shots[Math.floor((view.place * picture.shots.length) / view.of)] : null;
  canvas.redraw = (shown, region) => {
    const paint = (image) => paintView(canvas, image, view, boxOf(picture, view, region), shown);
    if (shot === null) paint(null);
    else load(shot).then(paint, () => paint(null));
  };
  canvas.redraw(show, seen);
  return canvas;
}

function count(view) {
  let prompt = 0, kept = 0;
  for (const state of view.cells) { kept += state > 0; prompt += state === PROMPT; }
  return `${kept} kept, ${prompt} of them prompt centres`;
}

function tell(picture, view) {
  return `${picture.shots.length ? "" : "no picture, "}grid of ${view.rows} × ${view.columns}: ${count(view)}`;
}

function paintView(canvas, image, view, box, show) {
  const pen = canvas.getContext("2d"), { width, height } = canvas;
  const shown = [];
  view.cells.forEach((state, index) => {
    if (state && (state === PROMPT ? show.prompt : show.visual)) shown.push([state, cellBox(box, view, index, width, height)]);
  });
  const cells = shown.filter(([, cell]) => cell);
  pen.clearRect(0, 0, width, height);
  if (image) {
    pen.drawImage(image, 0, 0, width, height);
    if (show.dim) {
      pen.fillStyle = `rgba(0, 0, 0, ${DIM})`;
      pen.fillRect(0, 0, width, height);
      pen.save();
      pen.beginPath();
      for (const [, [x0, y0, x1, y1]] of cells) pen.rect(x0, y0, x1 - x0, y1 - y0);
      pen.clip();
      pen.drawImage(image, 0, 0, width, height);
      pen.restore();
    }
  } else {
    paintEmpty(pen, view, box, width, height);
    pen.globalAlpha = 0.55;
    for (const [state, [x0, y0, x1, y1]] of cells) {
      pen.fillStyle = state === PROMPT ? COLOUR.prompt : COLOUR.visual;
      pen.fillRect(x0, y0, x1 - x0, y1 - y0);
    }
    pen.globalAlpha = 1;
  }
  const side = Math.min(((box[2] - box[0]) * width) / view.columns, ((box[3] - box[1]) * height) / view.rows);
  const line = Math.max(1, Math.min(Math.round(side / 8), 4 * (window.devicePixelRatio || 1)));
  pen.lineWidth = line;
  for (const [state, [x0, y0, x1, y1]] of cells) {
    pen.strokeStyle = state === PROMPT ? COLOUR.prompt : COLOUR.visual;
    pen.strokeRect(x0 + line / 2, y0 + line / 2, Math.max(1, x1 - x0 - line), Math.max(1, y1 - y0 - line));
  }
}

// The grid of a picture that is not there.
function paintEmpty(pen, view, box, width, height) {
  pen.fillStyle = "#2b3036";
  pen.fillRect(0, 0, width, height);
  pen.strokeStyle = "#454c54";
  pen.lineWidth = 1;
  pen.beginPath();
  for (let row = 0; row <= view.rows; row++) {
    const y = Math.round((box[1] + ((box[3] - box[1]) * row) / view.rows) * height) + 0.5;
    pen.moveTo(0, y); pen.lineTo(width, y);
  }
  for (let column = 0; column <= view.columns; column++) {
    const x = Math.round((box[0] + ((box[2] - box[0]) * column) / view.columns) * width) + 0.5;
    pen.moveTo(x, 0); pen.lineTo(x, height);
  }
  pen.stroke();
}
