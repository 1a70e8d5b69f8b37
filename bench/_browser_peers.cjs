// Steps a second of the 2NN, batches of 32, in libraries for browsers: node _browser_peers.cjs FOLDER-WITH-node_modules STEPS
const { createRequire } = require("node:module");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

const [folder, count] = [path.resolve(process.argv[2]), Number(process.argv[3])];
const its = createRequire(path.join(folder, "index.js"));
const widths = [784, 200, 200, 10];
const batch = 32;

async function timed(step, wait) {
  for (let i = 0; i < 3; i++) step();
  await wait();
  const began = performance.now();
  for (let i = 0; i < count; i++) step();
  await wait();
  return (1000 * count) / (performance.now() - began);
}

async function tensorflow() {
  const tf = its("@tensorflow/tfjs");
  const backend = its("@tensorflow/tfjs-backend-wasm");
  backend.setWasmPaths(path.join(path.dirname(its.resolve("@tensorflow/tfjs-backend-wasm/package.json")), "dist/"));
  await tf.setBackend("wasm");
  const weights = widths.slice(1).flatMap((outputs, l) => [tf.variable(tf.randomNormal([widths[l], outputs], 0, 0.05)), tf.variable(tf.zeros([outputs]))]);
  const x = tf.randomUniform([batch, widths[0]]);
  const y = tf.oneHot(tf.range(0, batch, 1, "int32").mod(tf.scalar(10, "int32")), 10);
  const sgd = tf.train.sgd(0.01);
  const loss = () => {
    let h = x;
    for (let l = 0; l < 3; l++) {
      h = h.matMul(weights[2 * l]).add(weights[2 * l + 1]);
      if (l < 2) h = h.relu();
    }
    return tf.losses.softmaxCrossEntropy(y, h);
  };
  return timed(() => tf.tidy(() => void sgd.minimize(loss, false, weights)), () => weights[0].data());
}

async function jax() {
  const { init, defaultDevice, numpy: np, valueAndGrad, jit, nn, tree } = await import(pathToFileURL(its.resolve("@jax-js/jax")).href);
  await init("wasm");
  defaultDevice("wasm");
  const random = (size) => np.array(Float32Array.from({ length: size }, () => (Math.random() - 0.5) * 0.1));
  let params = widths.slice(1).flatMap((outputs, l) => [random(widths[l] * outputs).reshape([widths[l], outputs]), np.zeros([outputs])]);
  const [x, y] = [random(batch * widths[0]).reshape([batch, widths[0]]), np.zeros([batch, 10]).add(0.1)];
  const loss = (p, x, y) => {
    let h = x;
    for (let l = 0; l < 3; l++) {
      h = np.matmul(h, p[2 * l]).add(p[2 * l + 1]);
      if (l < 2) h = nn.relu(h);
    }
    return nn.logSoftmax(h).mul(y).sum().mul(-1 / batch);
  };
  const descend = jit((p, x, y) => {
    const [value, gradient] = valueAndGrad(loss)(tree.ref(p), x, y);
    return [value, tree.map((w, d) => w.sub(d.mul(0.01)), p, gradient)];
  });
  const step = () => {
    const [value, next] = descend(params, x.ref, y.ref);
    value.dispose();
    params = next;
  };
  return timed(step, () => params[0].ref.data());
}

(async () => {
  const found = {};
  for (const [name, measure] of [["tfjs, wasm", tensorflow], ["jax-js, wasm", jax]]) {
    try {
      found[name] = await measure();
    } catch (error) {
      console.error(`${name} is not measured: ${error.message}`);
    }
  }
  console.log(JSON.stringify(found));
})();
