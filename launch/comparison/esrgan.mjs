// Upscales pictures by a model of UpscalerJS, run by tfjs in WebAssembly (one core, SIMD).
//   node esrgan.mjs MODULES PACKAGE      MODULES: the folder that npm installed into
// Takes from stdin, for each picture, height and width (uint32) and its RGB bytes; writes the RGB
// bytes of the result to stdout.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [modules, name] = process.argv.slice(2);
const require = createRequire(path.join(modules, "package.json"));
console.log = console.info = console.warn = (...words) => console.error(...words);
const tf = require("@tensorflow/tfjs");
const wasm = require("@tensorflow/tfjs-backend-wasm");
wasm.setWasmPaths(path.join(modules, "node_modules/@tensorflow/tfjs-backend-wasm/dist/"));
await tf.setBackend("wasm");

// The package's own description: custom layers, and the range of inputs and outputs.
let model = require(`${name}/4x`);
if (typeof model === "function") model = model(tf);
model.setup?.(tf);
const folder = path.join(modules, "node_modules", name, "models/x4");
const { modelTopology, weightsManifest } = JSON.parse(fs.readFileSync(`${folder}/model.json`));
const files = weightsManifest.flatMap((group) => group.paths);
const bytes = Buffer.concat(files.map((file) => fs.readFileSync(path.join(folder, file))));
const network = await tf.loadLayersModel(
  tf.io.fromMemory({
    modelTopology,
    weightSpecs: weightsManifest.flatMap((group) => group.weights),
    weightData: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length),
  }),
);
const white = model.inputRange[1];

function read(length) {
  const buffer = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const count = fs.readSync(0, buffer, at, length - at);
    if (count === 0) return null;
    at += count;
  }
  return buffer;
}

for (let size; (size = read(8)); ) {
  const [height, width] = [size.readUInt32LE(0), size.readUInt32LE(4)];
  const made = tf.tidy(() => {
    const levels = tf.tensor4d(Float32Array.from(read(3 * height * width)), [1, height, width, 3]);
    const result = network.predict(levels.mul(white / 255)).mul(255 / white);
    return result.clipByValue(0, 255).round().cast("int32");
  });
  const pixels = Buffer.from(Uint8Array.from(made.dataSync()));
  made.dispose();
  for (let at = 0; at < pixels.length; ) at += fs.writeSync(1, pixels, at);
}
