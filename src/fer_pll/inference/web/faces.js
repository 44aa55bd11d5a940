// From pixels to faces and their expressions, as fer_pll.inference does it in Python. No page and no network in here:
// it takes onnxruntime-web (or onnxruntime-node) and the files of the folder.
// An image is {width, height, data}, RGBA with 8 bits as a canvas gives it. Coordinates are continuous pixels: the
// corner of the first pixel is (0, 0). Landmarks: left eye, right eye, nose, left and right corner of the mouth.

const SCORE = 0.8, OVERLAP = 0.4, LONGEST = 1280;
const MEAN = [123, 117, 104];  // of the detector, RGB
const GRIDS = [[8, [16, 32]], [16, [64, 128]], [32, [256, 512]]];  // stride and sizes of the detector's anchors
const WINDOW = {  // for the second look at a face
  template: [[0.32, 0.38], [0.68, 0.38], [0.5, 0.6], [0.36, 0.77], [0.64, 0.77]], size: 160, color: "rgb", margin: 0.25,
};
const LONGEST_SIDE = 3000;  // of the grid that a crop is interpolated on

// Places of the landmarks in a crop, in pixels.
function places(crop) {
  return crop.template.map((point) => point.map((share) => (share + crop.margin) / (1 + 2 * crop.margin) * crop.size));
}

// Rotation, scale and translation that best map points to others (Umeyama, 1991): [re, im, x, y], the factor and the
// offset as complex numbers. Null where the points tell neither scale nor rotation.
function similarity(points, template) {
  const mean = (all) => [0, 1].map((axis) => all.reduce((sum, point) => sum + point[axis], 0) / all.length);
  const [px, py] = mean(points), [qx, qy] = mean(template);
  let re = 0, im = 0, extent = 0;
  points.forEach(([x, y], i) => {
    const [a, b, c, d] = [x - px, y - py, template[i][0] - qx, template[i][1] - qy];
    re += a * c + b * d;
    im += a * d - b * c;
    extent += a * a + b * b;
  });
  if (!(extent > 0) || !(re || im)) return null;
  re /= extent;
  im /= extent;
  return [re, im, qx - (re * px - im * py), qy - (im * px + re * py)];
}

// From an image to a crop; null where the landmarks are those of no face in it.
function faceTransform(image, landmarks, crop) {
  const made = similarity(landmarks, places(crop)), longest = Math.max(image.width, image.height);
  if (!made || !made.every(Number.isFinite)) return null;
  const outside = Math.max(...landmarks.map(([x, y]) => Math.max(-x, x - image.width, -y, y - image.height)));
  return Math.max(outside, crop.size / Math.hypot(made[0], made[1])) > 100 * longest ? null : made;
}

// Each pixel the mean of a square of `factor` pixels; those at the right and the bottom of what is left.
function reduceImage(image, factor) {
  const width = Math.ceil(image.width / factor), height = Math.ceil(image.height / factor);
  const data = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sums = [0, 0, 0, 0];
      let count = 0;
      for (let row = y * factor; row < Math.min(image.height, (y + 1) * factor); row++) {
        for (let column = x * factor; column < Math.min(image.width, (x + 1) * factor); column++, count++) {
          for (let c = 0; c < 4; c++) sums[c] += image.data[(row * image.width + column) * 4 + c];
        }
      }
      for (let c = 0; c < 4; c++) data[(y * width + x) * 4 + c] = Math.floor(sums[c] / count + 0.5);
    }
  }
  return { width, height, data };
}

// Pillow's bilinear resizing: a triangle as wide as a pixel of the smaller image, rows and columns one after the other.
export function resizeImage(image, width, height) {
  const weigh = (size, smaller) => {
    const scale = Math.max(size / smaller, 1);
    return Array.from({ length: smaller }, (_, place) => {
      const center = (place + 0.5) * size / smaller;
      const first = Math.max(0, Math.floor(center - scale + 0.5)), last = Math.min(size, Math.floor(center + scale + 0.5));
      const weights = Array.from({ length: last - first }, (_, k) => Math.max(0, 1 - Math.abs(first + k + 0.5 - center) / scale));
      const sum = weights.reduce((a, b) => a + b, 0);
      return [first, weights.map((weight) => weight / sum)];
    });
  };
  const columns = weigh(image.width, width), rows = weigh(image.height, height);
  const between = new Uint8ClampedArray(width * image.height * 4), data = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < image.height; y++) {
    columns.forEach(([first, weights], x) => {
      for (let c = 0; c < 4; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * image.data[(y * image.width + first + k) * 4 + c];
        between[(y * width + x) * 4 + c] = sum;
      }
    });
  }
  rows.forEach(([first, weights], y) => {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 4; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * between[((first + k) * width + x) * 4 + c];
        data[(y * width + x) * 4 + c] = sum;
      }
    }
  });
  return { width, height, data };
}

function cubic(a, b, c, d, t) {  // as Pillow's transform has it
  return b + t * (c - a + t * (2 * (a - b) + c - d + t * (b - a + d - c)));
}

// The face as a crop shows it, RGBA; gray ones have three equal channels. As fer_pll.model.face_alignment.align_face.
export function alignFace(image, landmarks, crop) {
  let toCrop = faceTransform(image, landmarks, crop);
  const reduction = Math.ceil(crop.size / Math.hypot(toCrop[0], toCrop[1]) / LONGEST_SIDE);
  if (reduction > 1) {
    image = reduceImage(image, reduction);
    toCrop = similarity(landmarks.map((point) => point.map((value) => value / reduction)), places(crop));
  }
  const [re, im, x, y] = toCrop, square = re * re + im * im;
  // The inverse: the factor's reciprocal, and the origin of the crop in the image.
  const [a, b] = [re / square, -im / square], origin = [-(a * x - b * y), -(b * x + a * y)];
  const finer = Math.max(1, Math.ceil(Math.hypot(a, b) - 1e-6)), side = crop.size * finer, { width, height } = image;
  const gray = crop.color === "gray", channels = gray ? 1 : 3;
  const source = gray ? new Uint8Array(width * height) : image.data, step = gray ? 1 : 4;
  if (gray) {
    for (let i = 0; i < source.length; i++) {
      source[i] = (image.data[4 * i] * 19595 + image.data[4 * i + 1] * 38470 + image.data[4 * i + 2] * 7471 + 0x8000) >> 16;
    }
  }
  const clip = (value, size) => Math.min(Math.max(value, 0), size - 1);
  const sums = new Float64Array(crop.size * crop.size * channels);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      const u = (column + 0.5) / finer, v = (row + 0.5) / finer;
      const left = a * u - b * v + origin[0] - 0.5, top = b * u + a * v + origin[1] - 0.5;
      const floorX = Math.floor(left), floorY = Math.floor(top), dx = left - floorX, dy = top - floorY;
      const xs = [-1, 0, 1, 2].map((k) => clip(floorX + k, width) * step);
      for (let c = 0; c < channels; c++) {
        const lines = [-1, 0, 1, 2].map((k) => {
          const start = clip(floorY + k, height) * width * step + c;
          return cubic(source[start + xs[0]], source[start + xs[1]], source[start + xs[2]], source[start + xs[3]], dx);
        });
        const value = Math.trunc(Math.min(Math.max(cubic(...lines, dy), 0), 255));
        sums[(Math.floor(row / finer) * crop.size + Math.floor(column / finer)) * channels + c] += value;
      }
    }
  }
  const data = new Uint8ClampedArray(crop.size * crop.size * 4);
  for (let i = 0; i < crop.size * crop.size; i++) {
    for (let c = 0; c < 3; c++) data[4 * i + c] = Math.floor(sums[i * channels + (gray ? 0 : c)] / finer ** 2 + 0.5);
    data[4 * i + 3] = 255;
  }
  return { width: crop.size, height: crop.size, data };
}

// Finds faces and names their expressions.
export class Recognizer {
  // ort: onnxruntime; read(name): a promise of the bytes of a file in the folder, an ArrayBuffer.
  static async load(ort, read) {
    const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
    const made = new Recognizer();
    const [config, settings] = await Promise.all([json("config.json"), json("preprocessor_config.json")]);
    const sessions = ["onnx/model.onnx", "onnx/face_detector.onnx"].map(async (name) =>
      ort.InferenceSession.create(new Uint8Array(await read(name))));
    [made.classifier, made.detector] = await Promise.all(sessions);
    made.ort = ort;
    made.classes = Object.keys(config.id2label).map((k) => config.id2label[k]);
    made.settings = settings;
    return made;
  }

  // Class probabilities of crops of one size, an array for each.
  async classify(crops) {
    const { width, height } = crops[0], { image_mean: mean, image_std: std, rescale_factor: factor } = this.settings;
    const area = width * height, values = new Float32Array(crops.length * 3 * area);
    crops.forEach((crop, n) => {
      for (let c = 0; c < 3; c++) {
        for (let i = 0; i < area; i++) values[(n * 3 + c) * area + i] = (crop.data[4 * i + c] * factor - mean[c]) / std[c];
      }
    });
    const given = new this.ort.Tensor("float32", values, [crops.length, 3, height, width]);
    const { logits } = await this.classifier.run({ pixel_values: given });
    const size = this.classes.length;
    return crops.map((_, n) => {
      const row = Array.from(logits.data.subarray(n * size, (n + 1) * size)), most = Math.max(...row);
      const powers = row.map((value) => Math.exp(value - most)), sum = powers.reduce((a, b) => a + b, 0);
      return powers.map((value) => value / sum);
    });
  }

  // Faces as RetinaFace finds them: {box: [left, top, right, bottom], score, landmarks}, the best first.
  async detect(image) {
    const factor = Math.min(1, LONGEST / Math.max(image.width, image.height));
    const size = [image.width, image.height].map((side) => Math.max(1, Math.round(side * factor)));
    const { width, height, data } = factor < 1 ? resizeImage(image, ...size) : image;
    const area = width * height, values = new Float32Array(3 * area);
    for (let c = 0; c < 3; c++) for (let i = 0; i < area; i++) values[(2 - c) * area + i] = data[4 * i + c] - MEAN[c];
    const given = { [this.detector.inputNames[0]]: new this.ort.Tensor("float32", values, [1, 3, height, width]) };
    const answer = await this.detector.run(given);
    const [boxes, scores, marks] = this.detector.outputNames.map((name) => answer[name].data);
    const x = image.width / width, y = image.height / height, found = [];
    let anchor = 0;
    for (const [stride, sizes] of GRIDS) {
      for (let row = 0; row < Math.ceil(height / stride); row++) {
        for (let column = 0; column < Math.ceil(width / stride); column++) {
          for (const side of sizes) {
            const at = anchor++;
            if (!(scores[2 * at + 1] >= SCORE)) continue;
            const center = [(column + 0.5) * stride, (row + 0.5) * stride];
            const middle = [0, 1].map((k) => center[k] + 0.1 * side * boxes[4 * at + k]);
            const half = [2, 3].map((k) => side * Math.exp(0.2 * boxes[4 * at + k]) / 2);
            found.push({
              box: [(middle[0] - half[0]) * x, (middle[1] - half[1]) * y, (middle[0] + half[0]) * x, (middle[1] + half[1]) * y],
              score: scores[2 * at + 1],
              landmarks: [0, 1, 2, 3, 4].map((k) => [
                (center[0] + 0.1 * side * marks[10 * at + 2 * k]) * x, (center[1] + 0.1 * side * marks[10 * at + 2 * k + 1]) * y,
              ]),
            });
          }
        }
      }
    }
    const area_of = ([left, top, right, bottom]) => Math.max(0, right - left) * Math.max(0, bottom - top);
    const kept = [];
    for (const face of found.sort((a, b) => b.score - a.score)) {
      const apart = kept.every(({ box }) => {
        const corners = face.box.map((value, k) => (k < 2 ? Math.max(value, box[k]) : Math.min(value, box[k])));
        return area_of(corners) <= OVERLAP * (area_of(face.box) + area_of(box) - area_of(corners));
      });
      if (apart) kept.push(face);
    }
    return kept;
  }

  // Two more looks at a face, upright and at one size: its landmarks, refined.
  async refine(image, landmarks) {
    for (let look = 0; look < 2; look++) {
      const [re, im, x, y] = similarity(landmarks, places(WINDOW)), square = re * re + im * im;
      const seen = (await this.detect(alignFace(image, landmarks, WINDOW))).map((face) => face.landmarks);
      const errors = seen.map((points) => points.reduce(
        (sum, point, k) => sum + Math.hypot(point[0] - places(WINDOW)[k][0], point[1] - places(WINDOW)[k][1]), 0,
      ) / 5 / WINDOW.size);
      const least = Math.min(...errors);
      if (!errors.length || least > 0.1) break;  // gone, or another face
      landmarks = seen[errors.indexOf(least)].map(([u, v]) => [
        (re * (u - x) + im * (v - y)) / square, (re * (v - y) - im * (u - x)) / square,
      ]);
    }
    return landmarks;
  }

  // The faces of an image: {box, score, landmarks, crop, expressions: [{label, score}], the best first}.
  async recognize(image) {
    const faces = [];
    for (const face of await this.detect(image)) {
      if (!faceTransform(image, face.landmarks, WINDOW)) continue;
      const landmarks = await this.refine(image, face.landmarks), crop = alignFace(image, landmarks, this.settings.face_crop);
      const [scores] = await this.classify([crop]);
      const expressions = this.classes.map((label, k) => ({ label, score: scores[k] }));
      faces.push({ ...face, landmarks, crop, expressions: expressions.sort((a, b) => b.score - a.score) });
    }
    return faces;
  }
}
