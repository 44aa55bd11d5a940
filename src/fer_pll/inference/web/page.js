// The page: opens images, and shows their faces. Nothing is sent anywhere.
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { Recognizer } from "./faces.js";

const $ = (id) => document.getElementById(id);
ort.env.wasm.wasmPaths = { wasm: new URL("runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = 1;  // more need headers that static hosts do not send

async function read(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: the server says ${response.status}`);
  return response.arrayBuffer();
}

// Upright pixels of a file, a canvas or an image.
async function pixels(source) {
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(image, faces) {
  const canvas = $("photograph"), context = canvas.getContext("2d"), line = Math.max(2, Math.max(image.width, image.height) / 300);
  canvas.width = image.width;
  canvas.height = image.height;
  context.putImageData(image, 0, 0);
  context.lineWidth = line;
  context.strokeStyle = "#ffd60a";
  context.font = `${8 * line}px system-ui, sans-serif`;
  $("faces").replaceChildren();
  faces.forEach((face, number) => {
    const [left, top, right, bottom] = face.box;
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${number + 1}: ${face.expressions[0].label}`, width = context.measureText(text).width + 4 * line;
    context.fillStyle = "#000";
    context.fillRect(left, Math.max(0, top - 11 * line), width, 11 * line);
    context.fillStyle = "#ffd60a";
    context.fillText(text, left + 2 * line, Math.max(0, top - 11 * line) + 8.5 * line);

    const card = element("section", "face"), crop = element("canvas"), list = element("dl");
    crop.width = crop.height = face.crop.width;
    crop.title = "what the model saw";
    crop.getContext("2d").putImageData(new ImageData(face.crop.data, face.crop.width, face.crop.height), 0, 0);
    for (const { label, score } of face.expressions) {
      const bar = element("dd"), level = element("i");
      level.style.width = 100 * score + "%";
      bar.append(level, element("span", "", (100 * score).toFixed(1) + " %"));
      list.append(element("dt", "", label), bar);
    }
    card.append(element("h2", "", "Face " + (number + 1)), crop, list);
    $("faces").append(card);
  });
}

let recognizer;
const ready = Recognizer.load(ort, read).then((made) => { recognizer = made; });

async function open(source) {
  $("status").textContent = "looking for faces …";
  try {
    await ready;
    const image = await pixels(source), faces = await recognizer.recognize(image);
    show(image, faces);
    $("status").textContent = faces.length === 1 ? "1 face" : `${faces.length || "no"} faces`;
    return faces;
  } catch (error) {
    $("status").textContent = "This cannot be opened as an image: " + error.message;
    return null;
  }
}

$("file").addEventListener("change", (event) => event.target.files.length && open(event.target.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
});
ready.then(
  () => { $("status").textContent = "ready"; $("file").disabled = false; },
  (error) => { $("status").textContent = "The model cannot be loaded: " + error.message; },
);
window.ferPll = { ready, open, pixels, recognizer: () => recognizer };  // for tests and for other scripts
