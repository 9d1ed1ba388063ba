// The chapter network in plain JavaScript: logits, the gradient of the loss for the pixels, and BIM.
// Shapes are those of `advlib.digit_net`. All of it is one function, so that a worker can be made
// from its text: pages opened from a disk may not load a worker from a file.

function advlibNetwork() {
  const SIDE = 28,
    PIXELS = SIDE * SIDE,
    PADDED = SIDE + 2,
    PLANE = PADDED * PADDED;
  const HALF = SIDE / 2,
    POOLED = HALF * HALF;

  // IEEE half precision: a sign, five bits of exponent, ten of fraction.
  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31,
      fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
  }

  // A network as `weights.js` stores it: its weights in half precision, in base64, one after the
  // other in the order of PyTorch's parameters(), and the outputs of its three layers.
  function network(stored) {
    const bytes = Uint8Array.from(atob(stored.weights), (letter) => letter.charCodeAt(0));
    const weights = Float32Array.from(new Uint16Array(bytes.buffer), half);
    const [first, second, classes] = stored.shape;
    let at = 0;
    const take = (n) => weights.subarray(at, (at += n));
    const net = { first, second, classes };
    net.kernel1 = take(first * 9);
    net.bias1 = take(first);
    net.kernel2 = take(second * first * 9);
    net.bias2 = take(second);
    net.matrix = take(classes * second * POOLED);
    net.bias = take(classes);
    if (at !== weights.length) throw new Error(`${weights.length} weights, expected ${at}`);
    net.input = new Float32Array(PLANE); // with a frame of zeros, as all maps that a kernel reads
    net.maps = new Float32Array(first * PLANE);
    net.sums = new Float32Array(PIXELS);
    net.pooled = new Float32Array(second * POOLED);
    net.largest = new Int32Array(second * POOLED); // where in its map each pooled value was found
    net.slopes = new Float32Array(first * PLANE);
    return net;
  }

  // Add a 3 by 3 kernel's response to a framed plane to `sums`.
  function addConvolved(sums, plane, from, kernel, k) {
    const a = kernel[k],
      b = kernel[k + 1],
      c = kernel[k + 2],
      d = kernel[k + 3];
    const e = kernel[k + 4],
      f = kernel[k + 5],
      g = kernel[k + 6],
      h = kernel[k + 7],
      i = kernel[k + 8];
    for (let y = 0, to = 0; y < SIDE; y++) {
      let p = from + y * PADDED;
      for (let x = 0; x < SIDE; x++, p++, to++) {
        const q = p + PADDED,
          r = q + PADDED;
        sums[to] +=
          a * plane[p] +
          b * plane[p + 1] +
          c * plane[p + 2] +
          d * plane[q] +
          e * plane[q + 1] +
          f * plane[q + 2] +
          g * plane[r] +
          h * plane[r + 1] +
          i * plane[r + 2];
      }
    }
  }

  // The way back of one output value: its slope goes to the nine values it was made of.
  function spread(plane, at, slope, kernel, k) {
    plane[at] += slope * kernel[k];
    plane[at + 1] += slope * kernel[k + 1];
    plane[at + 2] += slope * kernel[k + 2];
    plane[at + PADDED] += slope * kernel[k + 3];
    plane[at + PADDED + 1] += slope * kernel[k + 4];
    plane[at + PADDED + 2] += slope * kernel[k + 5];
    plane[at + 2 * PADDED] += slope * kernel[k + 6];
    plane[at + 2 * PADDED + 1] += slope * kernel[k + 7];
    plane[at + 2 * PADDED + 2] += slope * kernel[k + 8];
  }

  // Logits of an image of 784 numbers from 0 to 1. What `gradient` needs stays in `net`.
  function logits(net, image) {
    const { input, maps, sums, pooled, largest } = net;
    for (let y = 0; y < SIDE; y++) {
      input.set(image.subarray(y * SIDE, (y + 1) * SIDE), (y + 1) * PADDED + 1);
    }
    for (let c = 0; c < net.first; c++) {
      sums.fill(net.bias1[c]);
      addConvolved(sums, input, 0, net.kernel1, c * 9);
      for (let y = 0, from = 0; y < SIDE; y++) {
        let to = c * PLANE + (y + 1) * PADDED + 1;
        for (let x = 0; x < SIDE; x++) maps[to++] = Math.max(sums[from++], 0);
      }
    }
    for (let c = 0; c < net.second; c++) {
      sums.fill(net.bias2[c]);
      for (let m = 0; m < net.first; m++) {
        addConvolved(sums, maps, m * PLANE, net.kernel2, (c * net.first + m) * 9);
      }
      for (let y = 0, to = c * POOLED; y < HALF; y++) {
        for (let x = 0; x < HALF; x++, to++) {
          let best = 2 * (y * SIDE + x);
          for (const other of [best + 1, best + SIDE, best + SIDE + 1]) {
            if (sums[other] > sums[best]) best = other;
          }
          pooled[to] = Math.max(sums[best], 0);
          largest[to] = best;
        }
      }
    }
    const found = new Float32Array(net.classes);
    for (let k = 0; k < net.classes; k++) {
      let sum = net.bias[k];
      const row = k * pooled.length;
      for (let i = 0; i < pooled.length; i++) sum += net.matrix[row + i] * pooled[i];
      found[k] = sum;
    }
    return found;
  }

  function softmax(scores) {
    const most = Math.max(...scores);
    const powers = Array.from(scores, (score) => Math.exp(score - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / sum);
  }

  // Gradient of the cross-entropy of class `label` for the pixels that `logits` saw last.
  function gradient(net, scores, label) {
    const { slopes, pooled, largest, matrix, kernel1, kernel2 } = net;
    const outer = softmax(scores);
    outer[label] -= 1;
    slopes.fill(0);
    for (let c = 0; c < net.second; c++) {
      for (let i = c * POOLED; i < (c + 1) * POOLED; i++) {
        if (pooled[i] === 0) continue;
        let slope = 0;
        for (let k = 0; k < net.classes; k++) slope += outer[k] * matrix[k * pooled.length + i];
        const corner = Math.floor(largest[i] / SIDE) * PADDED + (largest[i] % SIDE);
        for (let m = 0; m < net.first; m++) {
          const k = (c * net.first + m) * 9,
            to = m * PLANE + corner;
          spread(slopes, to, slope, kernel2, k);
        }
      }
    }
    const framed = new Float32Array(PLANE);
    for (let m = 0; m < net.first; m++) {
      for (let y = 0; y < SIDE; y++) {
        for (let x = 0; x < SIDE; x++) {
          const corner = y * PADDED + x,
            at = m * PLANE + corner + PADDED + 1;
          if (net.maps[at] === 0) continue;
          spread(framed, corner, slopes[at], kernel1, m * 9);
        }
      }
    }
    const found = new Float32Array(PIXELS);
    for (let y = 0; y < SIDE; y++) {
      const from = (y + 1) * PADDED + 1;
      found.set(framed.subarray(from, from + SIDE), y * SIDE);
    }
    return found;
  }

  // One step of BIM: along the gradient's sign, back into the eps-ball around `clean`, into [0, 1].
  // `scores` are what `logits` has just found for `image`.
  function step(net, image, scores, clean, label, eps, alpha) {
    const slopes = gradient(net, scores, label);
    return image.map((pixel, i) => {
      const moved = pixel + alpha * Math.sign(slopes[i]);
      return Math.min(Math.max(Math.min(Math.max(moved, clean[i] - eps), clean[i] + eps), 0), 1);
    });
  }

  return { network, logits, gradient, softmax, step };
}
