// Writes ABI and bytecode of our contracts into the Python package; --check: only says whether they are these.
const fs = require("fs");
const path = require("path");
const { NAMES } = require("./system");

const FILE = path.join(__dirname, "..", "..", "src", "tutti", "adapters", "chain", "contracts.json");

function compiled() {
  const found = {};
  for (const name of Object.values(NAMES)) {
    const file = path.join(__dirname, "..", "artifacts", "contracts", `${name}.sol`, `${name}.json`);
    const { abi, bytecode } = JSON.parse(fs.readFileSync(file, "utf8"));
    found[name] = { abi, bytecode };
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
