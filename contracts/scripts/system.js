// Deploys the contracts, each role to its own address, as src/tutti/adapters/chain/system.json says, which `tutti chain
// deploy` reads too. With no `admin` the deployer gives up its power at the end: then nobody can ever grant a role, and
// the rules stay as they are.
const { names: NAMES, arguments: ARGUMENTS, grants: GRANTS, rules: RULES } = require("../../src/tutti/adapters/chain/system.json");

const TOP = "0x" + "00".repeat(32); // DEFAULT_ADMIN_ROLE

async function deploySystem(ethers, { operator, arbiter, guardian, admin, ...rules } = {}) {
  const [deployer] = await ethers.getSigners();
  const whole = Object.entries({ ...RULES, ...rules }).map(([name, value]) => [name, BigInt(value)]);
  const values = { ...Object.fromEntries(whole), deployer: deployer.address };
  const roles = { operator, arbiter, guardian };
  const system = {};
  for (const [key, name] of Object.entries(NAMES)) {
    const given = ARGUMENTS[key].map((argument) => system[argument]?.target ?? values[argument]);
    system[key] = await (await ethers.deployContract(name, given)).waitForDeployment();
  }
  for (const [key, role, to] of GRANTS) {
    await (await system[key].grantRole(ethers.id(role), system[to]?.target ?? roles[to])).wait();
  }
  for (const key of Object.keys(NAMES).filter((each) => ARGUMENTS[each].includes("deployer"))) {
    if (admin) await (await system[key].grantRole(TOP, admin)).wait();
    if (admin !== deployer.address) await (await system[key].renounceRole(TOP, deployer.address)).wait();
  }
  return system;
}

module.exports = { deploySystem, NAMES, PERIOD: RULES.unbonding };
