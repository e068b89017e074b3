// Takes the place of the script of the demo's page: `window.run` measures in WebAssembly.
import * as transformers from "transformers.js";
import "./latency_measure.js";

const { env } = transformers;
const here = new URL(".", location.href);
env.allowRemoteModels = env.useBrowserCache = false;
env.allowLocalModels = true;
env.localModelPath = here.pathname;
env.backends.onnx.wasm.wasmPaths = new URL("transformers.js/", here).href;
window.run = ({ threads, ...settings }) => {
  env.backends.onnx.wasm.numThreads = threads;
  return measure(transformers, { ...settings, device: "wasm" });
};
window.ready = true;
