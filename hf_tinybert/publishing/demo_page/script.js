import { env, pipeline } from "transformers.js";

const $ = (id) => document.getElementById(id);
const here = new URL(".", location.href);
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = here.pathname; // with the host, transformers.js would not look for a tokenizer
env.useBrowserCache = false;
env.backends.onnx.wasm.wasmPaths = new URL("transformers.js/", here).href;

const demo = await (await fetch("demo.json")).json();
document.title = $("name").textContent = demo.name;
$("megabytes").textContent = demo.megabytes.toFixed(1);
$("format").textContent = demo.format;
showFigures(demo.figures);
for (const text of demo.samples) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = button.title = text;
  button.addEventListener("click", () => {
    $("text").value = text;
    answer();
  });
  $("samples").append(button);
}

let classify;
try {
  classify = await pipeline("text-classification", "student", { dtype: demo.dtype, device: "wasm" });
  await classify("Warm up.");
  $("status").textContent = "Ready. The model runs in this browser, on one thread of the CPU.";
} catch (error) {
  $("status").textContent = `The model could not be loaded: ${error.message}`;
  throw error;
}

let busy = false;
let waiting = false;

// While one text runs, only the newest of the others waits.
async function answer() {
  if (!classify) return;
  if (busy) {
    waiting = true;
    return;
  }
  busy = true;
  const text = $("text").value.trim();
  if (text) {
    const start = performance.now();
    const labels = await classify(text, { top_k: null });
    $("milliseconds").textContent = (performance.now() - start).toFixed(1);
    showLabels(labels);
  } else {
    $("answer").replaceChildren();
    $("milliseconds").textContent = "–";
  }
  busy = false;
  if (waiting) {
    waiting = false;
    answer();
  }
}

function showLabels(labels) {
  const lines = labels.map(({ label, score }) => {
    const line = document.createElement("li");
    const name = document.createElement("span");
    const share = document.createElement("span");
    const bar = document.createElement("meter");
    name.textContent = label;
    share.textContent = `${(100 * score).toFixed(1)} %`;
    bar.value = score;
    bar.ariaLabel = `probability of ${label}`;
    line.append(name, share, bar);
    return line;
  });
  $("answer").replaceChildren(...lines);
}

function showFigures(rows) {
  $("recorded").hidden = rows.length < 2;
  rows.forEach((cells, number) => {
    const line = $("figures").insertRow();
    for (const text of cells) {
      const cell = document.createElement(number ? "td" : "th");
      cell.textContent = text;
      line.append(cell);
    }
  });
}

let timer;
$("text").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(answer, 150);
});
answer();
