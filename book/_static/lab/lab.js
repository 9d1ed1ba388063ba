// The attack lab: three networks, one digit, an attack step by step, and a sweep over eps.
// `network.js` computes, in a worker each; `weights.js`, written when the book is built, holds the
// networks and the digits.

(() => {
  "use strict";

  const lab = document.getElementById("lab");
  if (!lab || !window.advlibLab) return;
  const { networks, digits } = window.advlibLab;
  const names = Object.keys(networks);
  const SIDE = 28;
  const STEPS = 20;
  const PAUSE = 50; // milliseconds from one step to the next, at least: slow enough to watch
  const GRID = [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]; // of the sweep
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // -- what the page shows ------------------------------------------------------------------------

  const each = (list, html) => Array.from(list, html).join("");
  const classes = each({ length: 10 }, (_, k) => `<option value="${k}">${k}</option>`);
  const picture = (label) =>
    `<canvas width="${SIDE}" height="${SIDE}" role="img" aria-label="${label}"></canvas>`;

  lab.innerHTML = `
    <div class="lab-choice">
      <div class="lab-thumbnails" role="group" aria-label="Test images">
        ${each(digits, ({ label }, i) => {
          const name = `Test image ${i + 1}, a ${label}`;
          return `<button type="button" class="lab-thumbnail" aria-label="${name}">
            <canvas width="${SIDE}" height="${SIDE}" role="presentation"></canvas></button>`;
        })}
      </div>
      <div class="lab-draw">
        <canvas id="lab-pad" width="280" height="280" role="img"
          aria-label="Draw a digit here with the mouse or a finger"></canvas>
        <div>
          <p id="lab-hint">Or draw a digit.</p>
          <p id="lab-own" hidden><label for="lab-meant">You drew a</label>
            <select id="lab-meant">${classes}</select>
            <button type="button" id="lab-clear">Clear</button></p>
        </div>
      </div>
    </div>
    <div class="lab-controls">
      <div class="lab-field"><label for="lab-eps">eps</label>
        <input type="range" id="lab-eps" min="0" max="0.3" step="0.01" value="0.1">
        <output for="lab-eps"></output></div>
      <div class="lab-field"><label for="lab-contrast">contrast</label>
        <input type="range" id="lab-contrast" min="10" max="100" step="5" value="100">
        <output for="lab-contrast"></output></div>
      <div class="lab-field"><label for="lab-by">attack by</label>
        <select id="lab-by"><option>BIM</option><option>random noise</option></select></div>
      <div class="lab-field"><label for="lab-target">aim at</label>
        <select id="lab-target"><option value="">any wrong digit</option>${classes}</select></div>
      <div class="lab-buttons"><button type="button" id="lab-attack">Attack</button>
        <button type="button" id="lab-reset">Reset</button></div>
    </div>
    <p id="lab-status" class="lab-status" aria-live="polite"></p>
    <div class="lab-panels">${each(
      names,
      (name) => `<section class="lab-panel" aria-label="${name} network">
        <div class="lab-name"><h2>${name}</h2><p></p><span></span></div>
        <div class="lab-pictures">
          <figure>${picture(`What the ${name} network sees`)}<figcaption></figcaption></figure>
          <figure>${picture(`The perturbation of the ${name} network's image`)}
            <figcaption>perturbation</figcaption></figure>
        </div>
        <ol class="lab-bars">${each(
          { length: 10 },
          (_, k) => `<li>${k}<span><i></i></span><span></span></li>`,
        )}</ol>
        <p></p></section>`,
    )}</div>
    <div class="lab-sweep"><h2>All ${digits.length} digits</h2>
      <button type="button" id="lab-sweep">Sweep eps</button>
      <progress id="lab-progress" aria-label="Progress of the sweep" hidden></progress></div>
    <p id="lab-swept" class="lab-status" aria-live="polite"></p>
    <figure class="lab-result" hidden>
      <ul>${each(names, (_, i) => `<li><i class="lab-point lab-curve-${i}"></i><span></span></li>`)}</ul>
      <div class="lab-chart" role="img"></div>
      <figcaption>Solid: the share that the attack leaves standing. Dotted: the share that is
        certified. No attack gets below the dotted line.</figcaption>
    </figure>`;

  const named = (...ids) => ids.map((id) => document.getElementById(`lab-${id}`));
  const [board, hint, own, meant, clear] = named("pad", "hint", "own", "meant", "clear");
  const [eps, contrast, by, target] = named("eps", "contrast", "by", "target");
  const [attack, reset, status] = named("attack", "reset", "status");
  const [toggle, progress, swept] = named("sweep", "progress", "swept");
  const thumbnails = [...lab.querySelectorAll(".lab-thumbnail")];
  const result = lab.querySelector(".lab-result");

  // `colour` turns one number into red, green and blue from 0 to 255.
  function paint(target, values, colour) {
    const context = target.getContext("2d");
    const picture = context.createImageData(SIDE, SIDE);
    values.forEach((value, i) => picture.data.set([...colour(value), 255], 4 * i));
    context.putImageData(picture, 0, 0);
  }

  const grey = (value) => Array(3).fill(Math.round(255 * value));
  // blue where pixels got darker, orange where they got brighter: Okabe and Ito's
  const signed = (most) => (value) => {
    const share = Math.min(Math.abs(value) / most, 1);
    const end = value < 0 ? [0, 114, 178] : [230, 159, 0];
    return end.map((channel) => Math.round(255 + share * (channel - 255)));
  };

  const sure = (share) => `${(Math.min(Math.floor(1000 * share), 999) / 10).toFixed(1)} %`;

  // -- the networks -------------------------------------------------------------------------------

  // Runs in the worker. A new message ends the work of its kind that is under way.
  function work({ network, logits, softmax, step, noisy, margin }) {
    let net = null;
    const latest = {};
    const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

    // The image after each step, if `watch`, or after the last one; no steps: the image as it is.
    async function attack(set) {
      const { job, clean, label, eps, noise, steps, watch, wait } = set;
      const lead = label === null ? -1 : margin(net, clean, label, eps);
      let image = clean;
      for (let done = 0; ; done++) {
        const scores = logits(net, image);
        if (watch || done === steps) {
          postMessage({ ...set, done, image, lead, probabilities: softmax(scores) });
        }
        if (done === steps) return;
        image = noise ? noisy(clean, eps) : step(net, image, scores, clean, set);
        await pause(wait);
        if (latest.attack !== job) return;
      }
    }

    // How many images stand at each eps, and how many are proven to. One that has fallen has fallen
    // for every larger eps; one that is proven to stand need not be attacked.
    async function sweep({ kind, job, images, target, noise, grid, steps }) {
      const falls = (image, { label }) => {
        const scores = logits(net, image);
        const answer = scores.indexOf(Math.max(...scores));
        return [target === null ? answer !== label : answer === target, scores];
      };
      const states = images.map((image) => ({ ...image, proven: true, fallen: false }));
      for (const [at, eps] of grid.entries()) {
        for (const [i, state] of states.entries()) {
          const { clean, label } = state;
          state.proven &&= margin(net, clean, label, eps) > 0;
          if (noise) [state.fallen] = falls(noisy(clean, eps), state);
          let image = clean;
          for (let k = 0; k <= steps && !(noise || state.proven || state.fallen); k++) {
            const [fallen, scores] = falls(image, state);
            state.fallen = fallen;
            image = step(net, image, scores, clean, { label, target, eps });
            if (k % 4 === 0) await pause(0); // to hear of other work
          }
          if (i % 4 === 0) await pause(0);
          if (latest.sweep !== job) return;
          const share = (at + (i + 1) / states.length) / grid.length;
          postMessage({ kind, job, share });
        }
        const standing = states.filter(({ fallen }) => !fallen).length;
        const proven = states.filter((state) => state.proven).length;
        postMessage({ kind, job, share: (at + 1) / grid.length, point: { eps, standing, proven } });
      }
    }

    onmessage = ({ data }) => {
      if (data.weights) net = network(data);
      else latest[data.kind] = data.job;
      if (data.kind) ({ attack, sweep })[data.kind](data);
    };
  }

  function worker(stored, heard) {
    const source = `"use strict";\n(${work})((${advlibNetwork})());`;
    const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    const started = new Worker(address);
    started.onmessage = ({ data }) => heard(data);
    started.postMessage(stored);
    return started;
  }

  class Panel {
    constructor(name, i) {
      this.name = name;
      this.worker = worker(networks[name], (data) => heard[data.kind](this, data));
      const node = lab.querySelectorAll(".lab-panel")[i];
      [this.image, this.change] = node.querySelectorAll("canvas");
      [this.says, this.proof] = node.querySelectorAll("p");
      this.mark = node.querySelector(".lab-name span");
      this.caption = node.querySelector("figcaption");
      this.rows = [...node.querySelectorAll("li")];
    }

    show({ done, image, probabilities, lead, clean, label, target, eps, noise }) {
      paint(this.image, image, grey);
      const change = image.map((pixel, i) => pixel - clean[i]);
      paint(this.change, change, signed(eps || 1));
      this.caption.textContent = done ? (noise ? "noisy" : `step ${done}`) : "image";
      const answer = probabilities.indexOf(Math.max(...probabilities));
      const right = label === null || answer === label;
      const verdict = right ? "lab-right" : "lab-wrong";
      this.answer = answer;
      this.fell = target === null ? !right : answer === target;
      this.proven = lead > 0;
      this.rows.forEach((row, digit) => {
        row.className = digit === answer ? verdict : "";
        row.querySelector("i").style.width = `${100 * probabilities[digit]}%`;
        row.lastChild.textContent = sure(probabilities[digit]);
      });
      this.says.textContent = `says ${answer}, ${sure(probabilities[answer])}`;
      this.mark.textContent = right ? "right ✓" : answer === target ? "target ✗" : "wrong ✗";
      this.mark.className = verdict;
      const [budget, proven] = [eps.toFixed(2), this.proven ? "lab-proven" : ""];
      this.proof.className = `lab-proof ${proven}`;
      this.proof.textContent = this.proven
        ? `Certified: no change up to ${budget} breaks it.`
        : `No certificate at eps ${budget}.`;
    }
  }

  // -- choosing a digit ---------------------------------------------------------------------------

  const pixels = (text) => Float32Array.from(atob(text), (letter) => letter.charCodeAt(0) / 255);

  // A drawing as the networks know digits: the ink fitted into 20 by 20 pixels, in the middle.
  function fitted(drawing) {
    const { width } = drawing;
    const ink = drawing.getContext("2d").getImageData(0, 0, width, width).data;
    let [left, top, right, bottom] = [width, width, -1, -1];
    for (let i = 0; i < width * width; i++) {
      if (ink[4 * i + 3] < 30) continue;
      const [x, y] = [i % width, Math.floor(i / width)];
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
    const image = new Float32Array(SIDE * SIDE);
    if (right < 0) return image;
    const [w, h] = [right - left + 1, bottom - top + 1];
    const scale = 20 / Math.max(w, h);
    const small = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = small.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.translate(SIDE / 2, SIDE / 2);
    context.scale(scale, scale);
    context.drawImage(drawing, left, top, w, h, -w / 2, -h / 2, w, h);
    const found = context.getImageData(0, 0, SIDE, SIDE).data;
    return image.map((_, i) => found[4 * i + 3] / 255);
  }

  function press(chosen) {
    for (const node of thumbnails) node.setAttribute("aria-pressed", String(node === chosen));
    own.hidden = chosen !== null;
    hint.hidden = !own.hidden;
  }

  function choose(image, label) {
    Object.assign(state, { image, label, attacked: false });
    for (const option of target.options) option.disabled = option.value === String(label);
    if (target.value === String(label)) target.value = "";
    run();
  }

  thumbnails.forEach((node, i) => {
    const image = pixels(digits[i].pixels);
    paint(node.querySelector("canvas"), image, grey);
    node.addEventListener("click", () => {
      pen.clearRect(0, 0, board.width, board.height);
      press(node);
      choose(image, digits[i].label);
    });
  });

  const pen = board.getContext("2d");
  Object.assign(pen, { lineWidth: 24, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  let drawing = false;
  const line = ({ offsetX, offsetY }) => {
    const scale = board.width / board.clientWidth;
    pen.lineTo(offsetX * scale, offsetY * scale);
    pen.stroke();
  };
  board.addEventListener("pointerdown", (event) => {
    board.setPointerCapture(event.pointerId);
    drawing = true;
    pen.beginPath();
    line(event);
    line(event); // a dot, if nothing follows
  });
  board.addEventListener("pointermove", (event) => drawing && line(event));
  for (const end of ["pointerup", "pointercancel"]) {
    board.addEventListener(end, () => {
      drawing = false;
      press(null);
      choose(fitted(board), null);
    });
  }
  meant.addEventListener("change", () => choose(state.image, Number(meant.value)));
  clear.addEventListener("click", () => thumbnails.at(-1).click());

  // -- one digit ----------------------------------------------------------------------------------

  const state = { image: null, label: null, attacked: false };
  const jobs = { attack: 0, sweep: 0 };

  // What the controls say, in a form that the workers take.
  function settings() {
    const noise = by.selectedIndex === 1;
    const aim = noise || target.value === "" ? null : Number(target.value);
    return { eps: Number(eps.value), noise, target: aim };
  }
  const fainter = (image) => image.map((pixel) => (pixel * contrast.value) / 100);

  // Let all networks look at the image, as it is or attacked; `watch` shows each step.
  function run(watch = false) {
    const set = {
      ...settings(),
      kind: "attack",
      job: (jobs.attack += 1),
      label: state.label,
      watch,
    };
    set.steps = state.attacked ? (set.noise ? 1 : STEPS) : 0;
    Object.assign(set, {
      clean: fainter(state.image),
      wait: watch ? PAUSE : 0,
    });
    eps.nextElementSibling.textContent = set.eps.toFixed(2);
    contrast.nextElementSibling.textContent = `${contrast.value} %`;
    target.disabled = set.noise;
    lab.dataset.state = "running";
    for (const panel of panels) {
      panel.ready = false;
      panel.worker.postMessage(set);
    }
  }

  function turn(attacked) {
    state.attacked = attacked && state.label !== null;
    run(state.attacked && !still.matches);
  }

  for (const control of [eps, contrast, by, target]) control.addEventListener("input", () => run());
  attack.addEventListener("click", () => turn(true));
  reset.addEventListener("click", () => turn(false));

  function looked(panel, data) {
    if (data.job !== jobs.attack) return;
    panel.show(data);
    panel.ready = data.done === data.steps;
    if (!panels.every(({ ready }) => ready)) return;
    lab.dataset.state = "done";
    // a drawing counts as what the robust network takes it for, until the reader says what it is
    if (data.label === null) {
      meant.value = panels[1].answer;
      choose(state.image, panels[1].answer);
      return;
    }
    const which = (key) => names.filter((_, i) => panels[i][key]).join(", ") || "none";
    const what = data.noise ? "Random noise" : `BIM, ${STEPS} steps`;
    const aim = data.target === null ? "breaks" : `gets a ${data.target} from`;
    const found = data.steps ? `${what}, ${aim}: ${which("fell")}. ` : "";
    status.textContent = `${found}Certified at eps ${data.eps.toFixed(2)}: ${which("proven")}.`;
  }

  // -- all digits ---------------------------------------------------------------------------------

  let total = 0;

  toggle.addEventListener("click", () => {
    const stop = !progress.hidden;
    const set = { ...settings(), kind: "sweep", job: (jobs.sweep += 1), steps: STEPS, grid: GRID };
    const all = digits.map(({ pixels: text, label }) => ({ clean: fainter(pixels(text)), label }));
    set.images = all.filter(({ label }) => label !== set.target);
    if (stop) set.grid = []; // a sweep over nothing ends the one before
    for (const panel of panels) panel.worker.postMessage(set);
    if (stop) return ended("Stopped");
    for (const panel of panels) Object.assign(panel, { points: [], share: 0 });
    total = set.images.length;
    const what = set.noise ? "one draw of random noise" : `BIM, ${STEPS} steps of eps / 10`;
    const aim = set.target === null ? "" : ` towards ${set.target}`;
    swept.textContent = `Running: ${what}${aim}, ${total} digits, contrast ${contrast.value} %.`;
    toggle.textContent = "Stop";
    progress.hidden = result.hidden = false;
    draw();
  });

  function ended(how) {
    swept.textContent = swept.textContent.replace("Running", how);
    toggle.textContent = "Sweep eps";
    progress.hidden = true;
  }

  function counted(panel, { job, share, point }) {
    if (job !== jobs.sweep) return;
    panel.share = share;
    progress.value = panels.reduce((sum, one) => sum + one.share / panels.length, 0);
    if (!point) return;
    panel.points.push(point);
    draw();
    if (panels.every(({ points }) => points.length === GRID.length)) ended("Done");
  }

  function draw() {
    const x = (value) => (100 * value) / GRID.at(-1);
    const y = (count) => 100 - (100 * count) / total;
    const mark = (name, left, top, text = "") =>
      `<span class="${name}" style="left: ${left}%; top: ${top}%">${text}</span>`;
    const [legend, chart] = result.children;
    const words = [];
    const curves = panels.map(({ name, points }, i) => {
      const list = (key) => points.map((point) => point[key]).join(", ");
      legend.children[i].lastChild.textContent = `${name}: ${list("standing") || "…"} of ${total}`;
      words.push(`${name} ${list("standing")}, certified ${list("proven")}`);
      const curve = (key) => {
        const places = points.map((point) => [x(point.eps), y(point[key])]).join(" ");
        return `<polyline class="lab-curve-${i} lab-${key}" points="${places}"/>`;
      };
      return curve("proven") + curve("standing");
    });
    const lines = `<svg viewBox="0 0 100 100" preserveAspectRatio="none">${curves.join("")}</svg>`;
    const marks = panels.flatMap(({ points }, i) =>
      points.map((one) => mark(`lab-point lab-curve-${i}`, x(one.eps), y(one.standing))),
    );
    const across = [0, 0.1, 0.2, 0.3].map((value) => mark("lab-x", x(value), 100, value));
    const up = [0, 50, 100].map((percent) => mark("lab-y", 0, 100 - percent, `${percent} %`));
    chart.innerHTML = [lines, ...marks, ...across, ...up, mark("lab-x", 50, 108, "eps")].join("");
    const what = `Digits of ${total} that stand at eps ${GRID.join(", ")}`;
    chart.setAttribute("aria-label", `${what}: ${words.join("; ")}`);
  }

  const heard = { attack: looked, sweep: counted };
  const panels = names.map((name, i) => new Panel(name, i));
  thumbnails.at(-1).click();
})();
