// The chapter network in plain JavaScript: logits, the gradient of the loss for the pixels, attacks,
// and a certificate. Shapes are those of `advlib.digit_net`. All of it is one function, so that a
// worker can be made from its text: pages opened from a disk may not load a worker from a file.

function advlibNetwork() {
  const SIDE = 28;
  const PIXELS = SIDE * SIDE;
  const FRAMED = SIDE + 2;
  const PLANE = FRAMED * FRAMED;
  const HALF = SIDE / 2;

  // IEEE half precision: a sign, five bits of exponent, ten of fraction.
  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
  }

  // A network as `weights.js` stores it: its weights in half precision, in base64, one after the
  // other in the order of PyTorch's parameters(), and the outputs of its three layers.
  function network(stored) {
    const bytes = Uint8Array.from(atob(stored.weights), (letter) => letter.charCodeAt(0));
    const weights = Float64Array.from(new Uint16Array(bytes.buffer), half);
    const [first, second, classes] = stored.shape;
    let at = 0;
    const layer = (outputs, inputs) => ({
      weights: weights.subarray(at, (at += outputs * inputs)),
      bias: weights.subarray(at, (at += outputs)),
      terms: inputs + 1, // that each output is the sum of
    });
    const net = { layers: [layer(first, 9), layer(second, first * 9)], first, classes };
    net.last = layer(classes, second * HALF * HALF);
    if (at !== weights.length) throw new Error(`${weights.length} weights, expected ${at}`);
    return net;
  }

  // Add a 3 by 3 kernel's response to a framed plane to `sums`, but where the plane is all zeros.
  function addConvolved(sums, to, plane, from, kernel, k, busy) {
    const [a, b, c, d, e, f, g, h, i] = kernel.subarray(k, k + 9);
    for (let y = 0; y < SIDE; y++) {
      const row = from / FRAMED + y;
      if (!(busy[row] || busy[row + 1] || busy[row + 2])) {
        to += SIDE;
        continue;
      }
      let p = from + y * FRAMED;
      for (let x = 0; x < SIDE; x++, p++, to++) {
        const q = p + FRAMED;
        const r = q + FRAMED;
        const above = a * plane[p] + b * plane[p + 1] + c * plane[p + 2];
        const beside = d * plane[q] + e * plane[q + 1] + f * plane[q + 2];
        sums[to] += above + beside + g * plane[r] + h * plane[r + 1] + i * plane[r + 2];
      }
    }
  }

  // Planes, one after the other, in frames of zeros: what a kernel reads.
  function framed(planes) {
    const found = new Float64Array((planes.length / PIXELS) * PLANE);
    for (let row = 0; row * SIDE < planes.length; row++) {
      const to = Math.floor(row / SIDE) * PLANE + ((row % SIDE) + 1) * FRAMED + 1;
      found.set(planes.subarray(row * SIDE, (row + 1) * SIDE), to);
    }
    return found;
  }

  // A layer of 3 by 3 kernels over framed planes.
  function convolved(planes, { weights, bias }) {
    const inputs = planes.length / PLANE;
    const sums = new Float64Array(bias.length * PIXELS);
    const busy = new Uint8Array(planes.length / FRAMED); // rows that are not all zeros
    planes.forEach((value, at) => value !== 0 && (busy[Math.floor(at / FRAMED)] = 1));
    bias.forEach((value, c) => {
      sums.fill(value, c * PIXELS, (c + 1) * PIXELS);
      for (let m = 0; m < inputs; m++) {
        addConvolved(sums, c * PIXELS, planes, m * PLANE, weights, (c * inputs + m) * 9, busy);
      }
    });
    return sums;
  }

  const relu = (values) => values.map((value) => Math.max(value, 0));

  // Where the largest of each two by two values is.
  function largest(planes) {
    const found = new Int32Array(planes.length / 4);
    for (let i = 0; i < found.length; i++) {
      let best = 4 * (i - (i % HALF)) + 2 * (i % HALF);
      for (const other of [best + 1, best + SIDE, best + SIDE + 1]) {
        if (planes[other] > planes[best]) best = other;
      }
      found[i] = best;
    }
    return found;
  }

  // Logits of an image of 784 numbers from 0 to 1. What `gradient` needs stays in `net`.
  function logits(net, image) {
    const [one, two] = net.layers;
    net.maps = framed(relu(convolved(framed(image), one)));
    const sums = relu(convolved(net.maps, two));
    net.largest = largest(sums);
    net.pooled = Float64Array.from(net.largest, (at) => sums[at]);
    return net.last.bias.map((bias, k) => {
      const row = k * net.pooled.length;
      return net.pooled.reduce((sum, value, i) => sum + net.last.weights[row + i] * value, bias);
    });
  }

  function softmax(scores) {
    const most = Math.max(...scores);
    const powers = Array.from(scores, (score) => Math.exp(score - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / sum);
  }

  // The way back of one output value: its slope goes to the nine values it was made of.
  function spread(plane, at, slope, kernel, k) {
    for (let row = 0; row < 3; row++, at += FRAMED, k += 3) {
      plane[at] += slope * kernel[k];
      plane[at + 1] += slope * kernel[k + 1];
      plane[at + 2] += slope * kernel[k + 2];
    }
  }

  // Gradient of the cross-entropy of class `label` for the pixels that `logits` saw last.
  function gradient(net, scores, label) {
    const { maps, pooled, first, last } = net;
    const [one, two] = net.layers;
    const outer = softmax(scores);
    outer[label] -= 1;
    const slopes = new Float64Array(maps.length);
    pooled.forEach((value, i) => {
      if (value === 0) return;
      let slope = 0;
      for (let k = 0; k < net.classes; k++) slope += outer[k] * last.weights[k * pooled.length + i];
      const at = net.largest[i] % PIXELS;
      const corner = Math.floor(at / SIDE) * FRAMED + (at % SIDE);
      const kernel = Math.floor(i / (HALF * HALF)) * first * 9;
      for (let m = 0; m < first; m++) {
        spread(slopes, m * PLANE + corner, slope, two.weights, kernel + m * 9);
      }
    });
    const plane = new Float64Array(PLANE);
    slopes.forEach((slope, at) => {
      if (maps[at] === 0) return; // so are the frames
      spread(plane, (at % PLANE) - FRAMED - 1, slope, one.weights, Math.floor(at / PLANE) * 9);
    });
    return Float64Array.from({ length: PIXELS }, (_, i) => {
      return plane[(Math.floor(i / SIDE) + 1) * FRAMED + (i % SIDE) + 1];
    });
  }

  // `change(i)` added to each pixel, back into the eps-ball around `clean` and into [0, 1].
  const moved = (image, change, clean, eps) =>
    image.map((pixel, i) => {
      const near = Math.min(Math.max(pixel + change(i), clean[i] - eps), clean[i] + eps);
      return Math.min(Math.max(near, 0), 1);
    });

  // One step of BIM from `image`, where `logits` has just found `scores`: up the loss of the label,
  // or down that of a target.
  function step(net, image, scores, clean, { label, target, eps }) {
    const slopes = gradient(net, scores, target ?? label);
    const length = target === null ? eps / 10 : -eps / 10;
    return moved(image, (i) => length * Math.sign(slopes[i]), clean, eps);
  }

  // The control: as far as the attack may go at each pixel, but up or down by chance.
  const noisy = (clean, eps) => moved(clean, () => (Math.random() < 0.5 ? -eps : eps), clean, eps);

  // By how much the label's logit leads over each other one, at least, in all images that differ
  // from `clean` by up to eps a pixel: interval bounds, as `advlib.verification` computes them, and
  // as there widened by what rounding to single precision may add up to; the rounding of the bounds
  // themselves, in double precision, is far below 1e-6. Above 0 it is a proof.
  function margin(net, clean, label, eps) {
    const reach = (pixel) => eps + 2 ** -22 * (pixel + eps);
    const most = ({ terms }) => {
      const ku = (1.01 * terms + 4) * 2 ** -24;
      return ku / (1 - ku); // of the sum of the terms' sizes
    };
    let low = Float64Array.from(clean, (pixel) => Math.max(pixel - reach(pixel), 0));
    let high = Float64Array.from(clean, (pixel) => Math.min(pixel + reach(pixel), 1));
    for (const layer of net.layers) {
      const size = { weights: layer.weights.map(Math.abs), bias: layer.bias.map(Math.abs) };
      const radius = { weights: size.weights, bias: layer.bias.map(() => 0) };
      const middle = convolved(framed(low.map((value, i) => (value + high[i]) / 2)), layer);
      const change = convolved(framed(low.map((value, i) => (high[i] - value) / 2)), radius);
      const terms = convolved(framed(high), size);
      change.forEach((value, i) => (change[i] = value + most(layer) * terms[i]));
      low = relu(middle.map((value, i) => value - change[i]));
      high = relu(middle.map((value, i) => value + change[i]));
    }
    [low, high] = [low, high].map((side) => Float64Array.from(largest(side), (at) => side[at]));
    const { weights, bias } = net.last;
    const own = label * low.length;
    const leads = Array.from(bias, (other, k) => {
      let lead = bias[label] - other;
      let terms = Math.abs(bias[label]) + Math.abs(other);
      for (let i = 0, row = k * low.length; i < low.length; i++, row++) {
        const weight = weights[own + i] - weights[row];
        lead += weight * (weight > 0 ? low[i] : high[i]);
        terms += (Math.abs(weights[own + i]) + Math.abs(weights[row])) * high[i];
      }
      return k === label ? Infinity : lead - most(net.last) * terms;
    });
    return Math.min(...leads) - 1e-6;
  }

  return { network, logits, gradient, softmax, step, noisy, margin };
}
