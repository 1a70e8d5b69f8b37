// npx hardhat run scripts/deploy.js --network localhost
// Roles: TUTTI_OPERATOR (a coordinator), TUTTI_ARBITER and TUTTI_GUARDIAN, three addresses (`tutti chain keys` prints
// them); TUTTI_ADMIN keeps somebody who can grant roles, such as a timelock. Left out: accounts 1 to 3 of the node.
const fs = require("fs");
const path = require("path");
const { ethers, network } = require("hardhat");
const { deploySystem, NAMES } = require("./system");

async function main() {
  const signers = await ethers.getSigners();
  const role = (name, index) => process.env[`TUTTI_${name}`] ?? signers[index]?.address;
  const system = await deploySystem(ethers, {
    operator: role("OPERATOR", 1),
    arbiter: role("ARBITER", 2),
    guardian: role("GUARDIAN", 3),
    admin: process.env.TUTTI_ADMIN,
  });
  const contracts = {};
  for (const [key, name] of Object.entries(NAMES)) {
    contracts[key] = system[key].target;
    console.log(`${name.padEnd(20)} ${system[key].target}`);
  }
  const { chainId } = await ethers.provider.getNetwork();
  const file = path.join(__dirname, "..", "deployments", `${network.name}.json`);
  const found = { rpc: network.config.url ?? "", chain_id: Number(chainId), contracts, guardian: role("GUARDIAN", 3) };
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, JSON.stringify(found, null, 2) + "\n");
  console.log(`\nwritten to ${path.relative(process.cwd(), file)}; a coordinator takes it by:`);
  console.log(`  tutti chain connect ${path.relative(process.cwd(), file)}`);
}

main().catch((error) => {
  console.error(error.message ?? error);
  process.exitCode = 1;
});
