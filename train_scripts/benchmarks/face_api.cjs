// Writes face-api's version, and then answers each line with the seconds that its expression network took for a face
// of 112 x 112 random pixels: those of the clock, and those of the processor in all threads of this process.
// node face_api.cjs FOLDER THREADS, where FOLDER/node_modules has the three packages.

const path = require('node:path');
const readline = require('node:readline');

const [folder, threads] = process.argv.slice(2);
const modules = path.resolve(folder, 'node_modules');
const load = (name) => require(path.join(modules, name));
const tf = load('@tensorflow/tfjs');
const wasm = load('@tensorflow/tfjs-backend-wasm');
const faceapi = load('@vladmandic/face-api/dist/face-api.node-wasm.js');

async function main() {
  wasm.setThreadsCount(Number(threads));
  wasm.setWasmPaths(path.join(modules, '@tensorflow/tfjs-backend-wasm/dist/'));
  await tf.setBackend('wasm');
  const network = faceapi.nets.faceExpressionNet;
  await network.loadFromDisk(path.join(modules, '@vladmandic/face-api/model'));
  const face = tf.randomUniform([112, 112, 3], 0, 255);
  console.log(faceapi.version);
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    const start = performance.now();
    const before = process.cpuUsage();
    await network.predictExpressions(face);
    const { user, system } = process.cpuUsage(before);
    const clock = (performance.now() - start) / 1e3;
    console.log(JSON.stringify({ clock, processor: (user + system) / 1e6 }));
  }
}

main();
