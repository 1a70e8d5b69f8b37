// Writes ABI, bytecode and runtime code of our contracts into the Python package; --check: only says whether they are
// these. `immutables`: start and length of what a constructor writes into the runtime code.
const fs = require("fs");
const path = require("path");
const { NAMES } = require("./system");

const FILE = path.join(__dirname, "..", "..", "src", "tutti", "adapters", "chain", "contracts.json");
const ARTIFACTS = path.join(__dirname, "..", "artifacts");

function compiled() {
  const found = {};
  for (const name of Object.values(NAMES)) {
    const folder = path.join(ARTIFACTS, "contracts", `${name}.sol`);
    const { abi, bytecode, deployedBytecode } = JSON.parse(fs.readFileSync(path.join(folder, `${name}.json`), "utf8"));
    const { buildInfo } = JSON.parse(fs.readFileSync(path.join(folder, `${name}.dbg.json`), "utf8"));
    const { output } = JSON.parse(fs.readFileSync(path.join(folder, buildInfo), "utf8"));
    const references = output.contracts[`contracts/${name}.sol`][name].evm.deployedBytecode.immutableReferences ?? {};
    const immutables = Object.values(references).flat().map(({ start, length }) => [start, length]);
    immutables.sort(([a], [b]) => a - b);
    found[name] = { abi, bytecode, runtime: deployedBytecode, immutables };
  }
  return JSON.stringify(found) + "\n";
}

if (process.argv.includes("--check")) {
  if (fs.readFileSync(FILE, "utf8") !== compiled()) {
    console.error(`${path.relative(process.cwd(), FILE)} is not what these contracts compile to: npm --prefix contracts run build`);
    process.exitCode = 1;
  }
} else {
  fs.mkdirSync(path.dirname(FILE), { recursive: true });
  fs.writeFileSync(FILE, compiled());
}
