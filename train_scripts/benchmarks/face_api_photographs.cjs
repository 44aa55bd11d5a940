// Writes face-api's version, and then answers each line (JSON: file of raw RGB, width, height, detector) with the
// boxes [x, y, width, height] of the faces whose expressions it told, and the seconds that this took: those of the
// clock, and those of the processor in all threads of this process.
// node face_api_photographs.cjs FOLDER THREADS, where FOLDER/node_modules has the three packages.

const fs = require('node:fs');
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
  await tf.ready();
  const models = path.join(modules, '@vladmandic/face-api/model');
  for (const net of ['tinyFaceDetector', 'ssdMobilenetv1', 'faceExpressionNet']) {
    await faceapi.nets[net].loadFromDisk(models);
  }
  console.log(faceapi.version);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { file, width, height, detector } = JSON.parse(line);
    const pixels = new Uint8Array(fs.readFileSync(file));
    const start = performance.now();
    const before = process.cpuUsage();
    const image = tf.tensor3d(pixels, [height, width, 3], 'int32');
    const options = detector === 'tiny' ? new faceapi.TinyFaceDetectorOptions() : new faceapi.SsdMobilenetv1Options();
    const faces = await faceapi.detectAllFaces(image, options).withFaceExpressions();
    image.dispose();
    const { user, system } = process.cpuUsage(before);
    const clock = (performance.now() - start) / 1e3;
    const boxes = faces.map(({ detection: { box } }) => [box.x, box.y, box.width, box.height]);
    console.log(JSON.stringify({ boxes, clock, processor: (user + system) / 1e6 }));
  }
}

main();
